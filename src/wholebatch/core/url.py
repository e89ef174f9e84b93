"""Folders and files by URL (``s3://…``, ``gs://…``, ``memory://…``) with the few methods of a path that are needed.

fsspec, which torch brings along, does the work; for most kinds of URL it needs a package of its own (s3fs, gcsfs, …).
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from wholebatch.core.errors import RunFolderError

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::|://)", re.IGNORECASE)


class Url:
    """A file or folder in a file system of fsspec.

    What fsspec or a package behind it raises comes out as ``OSError``, so that it is met as that of a disk is.

    Args:
        text: the URL.
        place: the file system and the path in it; None finds them by the URL.

    Raises:
        RunFolderError: there is no such kind of URL, or a package for it is missing.

    >>> folder = Url("memory://wholebatch-doctest/run")
    >>> (folder / "a.txt").write_bytes(b"1")
    >>> folder.names(), (folder / "a.txt").read_bytes(), (folder / "b.txt").exists()
    (['a.txt'], b'1', False)
    >>> folder.remove()
    """

    def __init__(self, text: str, place: tuple[Any, str] | None = None) -> None:
        self.text = text.rstrip("/")
        if place is None:
            import fsspec  # type: ignore[import-untyped]

            try:
                place = fsspec.core.url_to_fs(self.text)
            except (ImportError, ValueError) as error:
                raise RunFolderError(f"the URL {text!r} cannot be used: {error}") from None
        self._fs, self._path = place[0], place[1].rstrip("/")

    def __truediv__(self, name: str) -> Url:
        return Url(f"{self.text}/{name}", (self._fs, f"{self._path}/{name}"))

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Url({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Url) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    @property
    def name(self) -> str:
        """The last part."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """What it lies in."""
        return Url(self.text.rpartition("/")[0], (self._fs, self._path.rpartition("/")[0]))

    def exists(self) -> bool:
        """Return whether there is a file of this name, or anything below it."""
        return bool(self._do("exists"))

    def is_dir(self) -> bool:
        """Return whether there is anything below this name."""
        return bool(self._do("isdir"))

    def is_file(self) -> bool:
        """Return whether there is a file of this name."""
        return bool(self._do("isfile"))

    def size(self) -> int:
        """Return the file's bytes; raises FileNotFoundError where there is none."""
        return int(self._do("size"))

    def names(self) -> list[str]:
        """Return the names of what lies in this folder, sorted; none where there is no such folder."""
        try:
            found = self._do("ls", detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found} - {self.name, ""})

    def read_bytes(self) -> bytes:
        """Return the file's content; raises FileNotFoundError where there is none."""
        return bytes(self._do("cat_file"))

    def write_bytes(self, data: bytes) -> None:
        """Make ``data`` the file's content."""
        with self.open("wb") as file:
            file.write(data)

    def open(self, mode: str) -> IO[bytes]:
        """Open the file ("rb" or "wb"); what it lies in is made where the file system has folders."""
        if mode == "wb":
            with suppress(Exception):  # most stores have no folders; the next line says what cannot be written
                self._fs.makedirs(self._path.rpartition("/")[0], exist_ok=True)
        return self._do("open", mode)

    def unlink(self) -> None:
        """Remove the file, if it exists."""
        with suppress(FileNotFoundError):
            self._do("rm_file")

    def remove(self) -> None:
        """Remove this and everything below it, if it exists."""
        with suppress(FileNotFoundError):
            self._do("rm", recursive=True)

    def _do(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            self._fs.invalidate_cache()  # others write there, too
            return getattr(self._fs, method)(self._path, *arguments, **options)
        except OSError:
            raise
        except Exception as error:  # whatever the package behind it has of its own
            raise OSError(f"{type(error).__name__}: {error}") from error


def location(place: str | os.PathLike[str] | Url) -> Path | Url:
    """Return ``place`` as a path, or where it is a URL as that.

    >>> location("runs/a").name, location("memory://runs/a")
    ('a', Url('memory://runs/a'))
    """
    if isinstance(place, Url):
        return place
    text = os.fspath(place)
    return Url(text) if _URL.match(text) else Path(text)
