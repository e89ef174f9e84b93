"""Files and folders that are on disk, and not only on their way, when a function returns.

Everything goes through plain system calls (``os.open``, ``os.write``, ``os.fsync``, ``os.rename``), each of
which raises ``OSError`` where it fails, a full disk included.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

_BUFFER = 1 << 20  # bytes; torch.save writes many small pieces between the large ones


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder (which names it has), so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write every byte, however many calls it takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and flush it.

    Raises:
        OSError: it cannot be written, or it exists.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_tensors(path: Path, state: Any) -> dict[str, Any]:
    """Write a new file with ``torch.save``, flush it, and return its ``sha256`` and ``size`` in bytes.

    The digest is taken of what was handed to the disk, not of what is read back from it.

    Raises:
        OSError: it cannot be written, or it exists.
    """
    with new_file(path) as sink:
        torch.save(state, cast(IO[bytes], sink))
    return sink.entry()


@contextmanager
def new_file(path: Path) -> Iterator[Sink]:
    """Give a new file to write to; it is flushed when the block ends, unless by an error.

    Raises:
        OSError: it cannot be written, or it exists.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        sink = Sink(descriptor)
        yield sink
        sink.finish()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, also while somebody else is adding to it or removing from it.

    Raises:
        OSError: it still stands after several tries.
    """
    for _ in range(10):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
    raise OSError(f"{path} cannot be removed")


class Sink:
    """A file for ``torch.save`` and its like: it hashes, buffers, and keeps an error until :meth:`finish`.

    An exception that passes through torch's C++ writer comes out as another one, or as none; so the first
    ``OSError`` is kept, what follows is dropped, and ``finish`` raises it.
    """

    def __init__(self, descriptor: int) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Take all of ``data``."""
        length = memoryview(data).nbytes
        if self._error is None:
            try:
                if len(self._waiting) + length > _BUFFER:
                    self._flush_to_disk()
                if length > _BUFFER:
                    self._put(data)
                else:
                    self._waiting += data
            except OSError as error:
                self._error = error
        return length

    def flush(self) -> None:
        """Called by torch.save at its end; :meth:`finish` does the work, since it may raise."""

    def close(self) -> None:
        """Called by torch.distributed.checkpoint at its end; as :meth:`flush`."""

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self.size + len(self._waiting)

    def entry(self) -> dict[str, Any]:
        """Return what a manifest says of the file."""
        return {"sha256": self.digest.hexdigest(), "size": self.size}

    def finish(self) -> None:
        """Write what is waiting.

        Raises:
            OSError: the first one that was met.
        """
        if self._error is None:
            self._flush_to_disk()
        if self._error is not None:
            raise self._error

    def _flush_to_disk(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        self._put(waiting)

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        write_all(self._descriptor, data)
        self.digest.update(data)
        self.size += memoryview(data).nbytes
