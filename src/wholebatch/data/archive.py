"""Files out of a tar archive, into memory: nothing is written, and nothing outside of what it says is read."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from wholebatch.core.errors import DataError
from wholebatch.data.imagefiles import shown

LARGEST = 512 << 20  # bytes of one member; the largest of CIFAR's is 154 MB


def read_members(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, bytes]:
    """Return the content of the archive's files that are called ``names`` (without their folders).

    Args:
        path: a ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz``.
        names: which files; those that are not there are left out of the result.

    Raises:
        DataError: no such archive, a damaged one, one with a member that would land outside of its folder, with a link
            in place of a file, or with an absurdly large file.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            before = -1
            while (member := archive.next()) is not None:
                _check(path, member, before)
                before = member.offset
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if member.isreg() and name in names else None
                if file is not None:
                    found[name] = file.read()
                    if len(found[name]) != member.size:
                        raise EOFError(f"{name} is cut off")
    except FileNotFoundError:
        raise DataError(f"there is no archive {shown(path)}") from None
    except DataError:
        raise
    except Exception as error:  # tarfile, zlib, lzma and struct raise errors of many kinds
        raise DataError(
            f"the archive {shown(path)} is damaged or cut off ({type(error).__name__}: {error}); get it again"
        ) from error
    return found


def _check(path: str | os.PathLike[str], member: tarfile.TarInfo, before: int) -> None:
    name = shown(member.name)
    parts = PurePosixPath(member.name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (len(member.name) > 1 and member.name[1] == ":"):
        raise DataError(f"the archive {shown(path)} is refused: its member {name} would land outside of its folder")
    if member.issym() or member.islnk():
        raise DataError(f"the archive {shown(path)} is refused: its member {name} is a link, not a file")
    if not 0 <= member.size <= LARGEST or member.offset <= before:  # a size below 0 would lead back, for ever
        raise DataError(f"the archive {shown(path)} is refused: its member {name} says {member.size} bytes")


def read_file(path: Path, limit: int = LARGEST) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: it cannot be read, or is larger than ``limit`` bytes.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(f"{shown(path)} has {size:,} bytes, at most {limit:,} were expected")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror or error}") from error
