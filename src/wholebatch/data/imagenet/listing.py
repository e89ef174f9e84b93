"""The list of images in a tree: made once, and kept as long as the tree does not change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from wholebatch.core.errors import DataError
from wholebatch.data.imagenet.names import SYNSET

FILELIST = "filelist.txt"  # in the tree where we unpacked it
_ENDINGS = (".jpeg", ".jpg", ".png")
_TITLE = "# wholebatch"


def is_image(name: str) -> bool:
    """Say whether a file's name is one of an image that counts.

    >>> is_image("n01440764_10026.JPEG"), is_image("._n01440764_10026.JPEG"), is_image("readme.txt")
    (True, False, False)
    """
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def list_images(folder: Path) -> list[str]:
    """Return the images in ``folder``, sorted, as paths below it: ``class/file`` or, without classes, ``file``.

    Raises:
        DataError: a name that is no text, or of two lines.
    """
    classes = _classes(folder)
    found = [f"{name}/{image}" for name in classes for image in _images(folder / name)] if classes else _images(folder)
    for path in found:
        if not path.isprintable():
            raise DataError(f"{folder} holds the odd name {path!r}; rename it, or leave it out")
    return sorted(found)


def kept_list(folder: Path, beside: Path) -> list[str]:
    """Return :func:`list_images`, read from where it was kept: in ``folder`` itself, or ``beside`` it.

    A list that was kept counts if the folders of the classes are as they were (their times of change). A new one is
    written to ``beside``, never into ``folder``; where that cannot be written, it is made anew each time.
    """
    mark = _mark(folder)
    if mark is None:
        return list_images(folder)
    for path in (folder / FILELIST, beside):
        images = _read(path, mark)
        if images is not None:
            return images
    images = list_images(folder)
    with suppress(OSError):
        beside.parent.mkdir(parents=True, exist_ok=True)
        _write(beside, mark, images)
    return images


def keep_list(folder: Path) -> None:
    """Write the list of the images in ``folder`` into it; where the images lie flat, they are listed when needed."""
    mark = _mark(folder)
    if mark is not None:
        _write(folder / FILELIST, mark, list_images(folder))


def list_path(folder: Path, cache: Path, ending: str = "txt") -> Path:
    """Return where in ``cache`` something about ``folder`` is kept."""
    name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache / f"{name}.{ending}"


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _classes(folder: Path) -> list[str]:
    with os.scandir(folder) as found:
        return sorted(entry.name for entry in found if SYNSET.fullmatch(entry.name) and entry.is_dir())


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as found:
        return [entry.name for entry in found if is_image(entry.name) and entry.is_file()]


def _mark(folder: Path) -> str | None:
    """What changes when an image is added to a class or taken away; None where there are no classes."""
    classes = _classes(folder)
    if not classes:
        return None
    times = "".join(f"{name} {(folder / name).stat().st_mtime_ns}\n" for name in classes)
    return hashlib.sha256(times.encode()).hexdigest()[:32]


def _read(path: Path, mark: str) -> list[str] | None:
    try:
        title, *images = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    return images if title == _title(mark, images) else None


def _write(path: Path, mark: str, images: Sequence[str]) -> None:
    write_whole(path, "\n".join([_title(mark, images), *images, ""]))


def _title(mark: str, images: Sequence[str]) -> str:
    return f"{_TITLE} {mark} {len(images)}"
