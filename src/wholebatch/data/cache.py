"""Files that can be made again: decoded images, statistics, what was found unreadable.

They lie in ``$WHOLEBATCH_CACHE``, else in ``$XDG_CACHE_HOME/wholebatch``, else in ``~/.cache/wholebatch``,
are written whole or not at all, and may be deleted at any time. Where the folder cannot be written to, everything
works without, only slower.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np


def folder() -> Path:
    """Return the cache folder, which may not exist yet."""
    named = os.environ.get("WHOLEBATCH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wholebatch"


def key(kind: str, *parts: object) -> str:
    """Return a file name for what depends on ``parts`` and on nothing else.

    >>> key("statistics", "a", 1) == key("statistics", "a", 1) != key("statistics", "a", 2)
    True
    """
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return f"{kind}-{hashlib.sha256(text).hexdigest()[:32]}"


def stamp(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return a text of the files' names, sizes and times, which changes whenever one of them was written.

    Raises:
        OSError: a file is missing.
    """
    hashed = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        hashed.update(os.fsencode(os.path.abspath(path)) + f"\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return hashed.hexdigest()


def read_bytes(name: str) -> bytes | None:
    """Return the content of the file ``name``, or None where there is none."""
    try:
        return (folder() / name).read_bytes()
    except OSError:
        return None


def store_bytes(name: str, content: bytes) -> None:
    """Keep ``content`` under ``name``, whole or not at all; a folder that cannot be written to is no error."""
    with suppress(OSError):
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, prefix=f".{name}.", delete=False) as file:
            try:
                file.write(content)
                file.close()
                os.replace(file.name, place / name)
            except BaseException:
                os.unlink(file.name)
                raise


def load_arrays(name: str, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, np.ndarray] | None:
    """Return the arrays kept under ``name``, mapped from disk, or None where they are missing or not of ``shapes``.

    A None in a shape stands for any length.
    """
    arrays = {}
    try:
        for item, shape in shapes.items():
            array = np.load(folder() / name / f"{item}.npy", mmap_mode="r", allow_pickle=False)
            fits = array.ndim == len(shape) and all(
                want in (None, have) for want, have in zip(shape, array.shape, strict=True)
            )
            if not fits:
                return None
            arrays[item] = array
    except (OSError, ValueError, EOFError):  # a damaged cache is no cache
        return None
    return arrays


def store_arrays(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Keep ``arrays`` under ``name``, all or none; a folder that cannot be written to is no error."""
    temporary = None
    try:
        place = folder()
        place.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=place, prefix=f".{name}.")
        for item, array in arrays.items():
            np.save(os.path.join(temporary, f"{item}.npy"), array, allow_pickle=False)
        if load_arrays(name, {item: array.shape for item, array in arrays.items()}) is None:
            shutil.rmtree(place / name, ignore_errors=True)  # damaged, or half removed
        os.rename(temporary, place / name)
    except OSError:  # full, read-only, or another process was first
        pass
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
