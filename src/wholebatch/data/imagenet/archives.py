"""Read tar archives that nobody vouches for: plain files only, under plain names, and whole.

The standard library's reader ends silently at a damaged header, which looks like a shorter archive; here the end
must be an end mark. Nothing is unpacked in memory or on disk to get at an archive within an archive.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from wholebatch.core.errors import DataError

_BLOCK = 512  # bytes: a header, and what contents are filled up to
_LARGEST_HEADER = 1 << 20  # bytes; of headers that hold names and times
_CHUNK = 1 << 20
_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


@dataclass(frozen=True)
class Entry:
    """A file in an archive: what it is called, as the parts of a path below the archive's root, and its content."""

    parts: tuple[str, ...]
    size: int
    content: IO[bytes]
    where: str  # for messages: archive and name


class _Member(tarfile.TarInfo):
    """A header, refused before its size is believed."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.GNUTYPE_SPARSE or (member.type in _HEADERS and member.size > _LARGEST_HEADER):
            raise ValueError(f"a header of type {member.type!r} and {member.size} bytes")
        return member


def entries(file: IO[bytes], archive: str, mode: str = "r:") -> Iterator[Entry]:
    """Yield the files of the tar archive in ``file``, which can seek, one after the other.

    Args:
        file: the archive.
        archive: what messages call it.
        mode: ``"r:"``, or ``"r:*"`` for one that may be compressed.

    Raises:
        DataError: it is damaged, cut off, or no tar archive; or holds something that is no plain file or folder, or
            a name that leads out of the folder it is unpacked into.
    """
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Member) as tar:  # type: ignore[call-overload]
            while (member := tar.next()) is not None:
                if member.size < 0 or member.issparse():
                    raise ValueError(f"the size of {member.name!r} is {member.size}")
                parts = _parts(member.name, archive)
                if member.isdir():
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise DataError(
                        f"{archive} holds {member.name!r}, which is a link or a device; ImageNet's archives hold "
                        "plain files only, so it is refused"
                    )
                content = tar.extractfile(member)
                assert content is not None
                yield Entry(parts, member.size, content, f"{archive}: {member.name}")
            tar.fileobj.seek(tar.offset)
            mark = tar.fileobj.read(_BLOCK)
            if len(mark) < _BLOCK or any(mark):
                raise ValueError(f"there is no end mark at byte {tar.offset}")
    except DataError:
        raise
    except Exception as error:  # tarfile raises ReadError, OSError, EOFError, ValueError, zlib.error, OverflowError, …
        raise damaged(archive, error) from error


def copy(entry: Entry, target: Path) -> None:
    """Write the content of ``entry`` to ``target``.

    Raises:
        DataError: the archive is damaged or cut off.
        OSError: the file cannot be written.
    """
    left = entry.size
    with target.open("wb") as file:
        while left:
            try:
                block = entry.content.read(min(left, _CHUNK))
            except Exception as error:
                raise damaged(entry.where, error) from error
            if not block:
                raise damaged(entry.where, "it ends too early")
            file.write(block)
            left -= len(block)


def damaged(where: str, why: object) -> DataError:
    """Return the error of an archive that cannot be read."""
    return DataError(f"{where} cannot be read, the archive is damaged or cut off ({why}); get it again")


def _parts(name: str, archive: str) -> tuple[str, ...]:
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    odd = any(character in '\\:*?"<>|' or not character.isprintable() for character in name)
    if name.startswith("/") or ".." in parts or odd:
        raise DataError(
            f"{archive} holds the name {name!r}, which could lead out of the folder it is unpacked into; "
            "it is refused, and nothing of it was written"
        )
    return parts
