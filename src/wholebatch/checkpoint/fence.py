"""One writer at a time in a run folder: the newest, without waiting for the older ones to let go.

A *world* is the set of processes of one launch; its rank 0 writes. Taking the folder makes a *staging* folder
``checkpoints/.staging-<generation>-<token>``, and moves those of older worlds away and deletes them. Every write
is prepared inside the writer's own staging folder and becomes visible by one ``rename`` out of it; every removal
is one ``rename`` into it. So a world that was overtaken, however long it slept and at whichever line it wakes,
renames a path that is no longer there: the system call fails with ENOENT. There is no moment between checking
and writing, because the check and the write are the same call.

Files that grow (``history.jsonl``) cannot be renamed line by line. Their writer appends to a descriptor of a copy
that it made in its staging folder and renamed into place; taking over puts a new copy in that place, so a line of
an older world goes to a file that has no name any more.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from wholebatch.checkpoint.durable import remove_tree, sync_folder, write_all, write_file
from wholebatch.core import launched
from wholebatch.core.errors import FencedError

FOLDER = "checkpoints"
JOURNALS = ("history.jsonl",)
_OWNER = ".generation"  # who took the folder last, for people and for numbering
_STAGING = re.compile(r"\.staging-(\d+)-([0-9a-f]+)")
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)  # ESTALE: the same on a network file system
_CHUNK = 1 << 20  # bytes


class Fence:
    """The right to write in a run folder; made by :meth:`take`. All methods may be called from any thread.

    Attributes:
        run_dir: the run folder, absolute.
        generation: how often the folder was taken, this time included.
        staging: the folder that holds what is being written; this fence holds as long as it stands.
    """

    def __init__(self, run_dir: Path, generation: int, token: str) -> None:
        self.run_dir = run_dir
        self.generation = generation
        self.folder = run_dir / FOLDER
        self.staging = self.folder / f".staging-{generation:08d}-{token}"
        self._token = token
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._journals: dict[Path, int] = {}  # descriptors, each open on the file that stands at its path

    @classmethod
    def take(cls, run_dir: str | os.PathLike[str], *, journals: Sequence[str] = JOURNALS) -> Fence:
        """Take the run folder over, at once, from whoever wrote there; make it where it is missing.

        When this returns, every write of an older world has either happened (and is whole) or never will. Read
        what the folder holds after this, not before.

        Args:
            run_dir: the run folder.
            journals: names in it of the files that grow by :meth:`append`.

        Raises:
            FencedError: a newer world took the folder meanwhile.
            OSError: the folder cannot be made or written.
        """
        run = Path(os.path.abspath(run_dir))
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        newest = max([0, _recorded(folder), *(generation for generation, _ in _stagings(folder))])
        fence = cls(run, newest + 1, secrets.token_hex(4))
        os.mkdir(fence.staging)  # first be seen, then look: of two that take at once, at least one sees the other
        try:
            fence._overtake()
            with fence.translated():
                for name in journals:
                    if (run / name).exists():
                        fence._adopt(run / name)
            fence.replace(folder / _OWNER, fence._owner())
        except BaseException:
            fence.close()
            raise
        return fence

    # the right --------------------------------------------------------------------------------

    def holds(self) -> bool:
        """Whether this is still the newest world."""
        try:
            os.stat(self.staging)
        except OSError as error:
            return error.errno not in _GONE
        return True

    def check(self) -> None:
        """Do nothing, while this is the newest world.

        Raises:
            FencedError: it is not; the message says who is.
        """
        if not self.holds():
            raise FencedError(self._overtaken())

    def close(self) -> None:
        """Give the right back: nothing can be written through this fence afterwards. May be called again."""
        with self._lock:
            for descriptor in self._journals.values():
                os.close(descriptor)
            self._journals.clear()
        with suppress(OSError):  # the next world removes what cannot be removed now
            remove_tree(self.staging)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # writing ----------------------------------------------------------------------------------

    def stage(self, name: str) -> Path:
        """Make and return an empty folder, not visible yet, to be filled and then given to :meth:`publish`.

        Raises:
            FencedError: a newer world has the folder.
            OSError: it cannot be made.
        """
        path = self._fresh(name)
        with self.translated():
            os.mkdir(path)
        return path

    def publish(self, staged: Path, target: Path) -> None:
        """Give a staged file or folder its name, in one step, and flush that.

        A file replaces the one of that name; a folder must not exist yet.

        Raises:
            FencedError: a newer world has the folder; ``target`` is as it was.
            OSError: it cannot be renamed, or the name cannot be flushed.
        """
        with self.translated():
            os.rename(staged, target)
        sync_folder(target.parent)

    def discard(self, path: Path) -> None:
        """Remove a file or folder of the run, or something staged that is not wanted any more, if it exists.

        Raises:
            FencedError: a newer world has the folder; nothing was removed.
            OSError: it cannot be moved away.
        """
        trash = self._fresh("trash")
        try:
            with self.translated():
                os.rename(path, trash)
        except FileNotFoundError:
            return
        if trash.is_dir():
            remove_tree(trash)
        else:
            trash.unlink(missing_ok=True)

    def replace(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Make ``data`` the content of the file ``path``, whole and flushed, or leave it as it was.

        Raises:
            FencedError: a newer world has the folder.
            OSError: it cannot be written.
        """
        path = Path(os.path.abspath(path))
        staged = self._fresh(path.name)
        try:
            with self.translated():
                write_file(staged, data)
            with self._lock:
                self._forget(path)
                self.publish(staged, path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise

    def append(self, path: str | os.PathLike[str], data: bytes) -> None:
        """Add ``data``, whole lines, to the end of the file ``path``; all of it or, where that fails, nothing.

        A last line without its end, left by a writer that was killed, is cut off first. Lines reach the operating
        system, not the disk: they survive a kill, and a checkpoint that follows says how many of them count.

        Raises:
            FencedError: a newer world has the folder.
            OSError: it cannot be written.
        """
        path = Path(os.path.abspath(path))
        with self._lock, self.translated():
            self.check()
            if path not in self._journals:
                self._adopt(path)
            descriptor = self._journals[path]
            end = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                write_all(descriptor, data)
            except OSError:
                os.ftruncate(descriptor, end)
                raise

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Around what writes in the staging folder: where a newer world removed it, say so.

        Raises:
            FencedError: an ``OSError`` came because the staging folder is gone; any other one goes through.
        """
        try:
            yield
        except OSError as error:
            if error.errno in _GONE and not self.holds():
                raise FencedError(self._overtaken()) from error
            raise

    # details ----------------------------------------------------------------------------------

    def _fresh(self, name: str) -> Path:
        """A path in the staging folder that nobody used."""
        return self.staging / f"{next(self._numbers)}-{name.lstrip('.')}"

    def _adopt(self, path: Path) -> None:
        """Put a copy of ``path`` (empty where there is none), without a torn last line, in its place; keep it open.

        Descriptors that others have on the old file lose their grip: it has no name any more.
        """
        staged = self._fresh(path.name)
        descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
        try:
            if path.exists():
                _copy_lines(path, descriptor)
            os.fsync(descriptor)
            self.publish(staged, path)
        except BaseException:
            os.close(descriptor)
            staged.unlink(missing_ok=True)
            raise
        self._journals[path] = descriptor

    def _forget(self, path: Path) -> None:
        """Close the journal ``path``, which is about to be replaced by another file."""
        descriptor = self._journals.pop(path, None)
        if descriptor is not None:
            os.close(descriptor)

    def _overtake(self) -> None:
        """Move the staging folders of older worlds away and delete them, and what others left of such.

        Renaming stops writers that come by path. Deleting stops those whose path was already looked up (a network
        client's file handle, a rename under way): what they want to rename is no more.
        """
        own, others = (self.generation, self._token), _stagings(self.folder)
        if _recorded(self.folder) >= self.generation or any(other > own for other in others):
            raise FencedError(self._overtaken())  # before anything of theirs is touched
        for generation, token in others:
            if (generation, token) < own:
                away = self.folder / f".fenced-{generation:08d}-{token}"
                with suppress(FileNotFoundError):  # somebody else does the same
                    os.rename(self.folder / f".staging-{generation:08d}-{token}", away)
        for name in os.listdir(self.folder):
            if name.startswith(".fenced-"):
                remove_tree(self.folder / name)
        sync_folder(self.folder)

    def _owner(self) -> bytes:
        return owner(self.generation)

    def _overtaken(self) -> str:
        """What a world that lost the folder says."""
        about = f"this world (generation {self.generation}) writes nothing more to the run folder {str(self.run_dir)!r}"
        owner = _owner_of(self.folder)
        if owner.get("generation", 0) > self.generation:
            return (
                f"{about}: generation {owner['generation']} (process {owner.get('process')} on {owner.get('host')}) "
                f"took it over at {owner.get('since')}"
            )
        return f"{about}: a newer world takes it over, or the folder was closed, moved or removed"


def owner(generation: int) -> bytes:
    """Return what a taker of a run folder writes about itself."""
    who = {"generation": generation, "host": socket.gethostname(), "process": os.getpid()}
    named = {"launch": launched.launch(), "writer": launched.process()}
    return (json.dumps({**who, **named, "since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n").encode()


def is_earlier_world(owner: Mapping[str, Any]) -> bool:
    """Return whether what a taker wrote is of this launch, and of another process than this one."""
    launch = launched.launch()
    return launch is not None and owner.get("launch") == launch and owner.get("writer") != launched.process()


def taken_by_earlier_world(run_dir: str | os.PathLike[str]) -> bool:
    """Return whether the last one that took the run folder belonged to the launch of this process."""
    return is_earlier_world(_owner_of(Path(os.path.abspath(run_dir)) / FOLDER))


def _stagings(folder: Path) -> list[tuple[int, str]]:
    """(generation, token) of every staging folder."""
    found = (_STAGING.fullmatch(name) for name in os.listdir(folder))
    return [(int(match[1]), match[2]) for match in found if match]


def _owner_of(folder: Path) -> dict[str, Any]:
    """What the last taker wrote about itself; empty where that cannot be read, since it is only information."""
    try:
        owner = json.loads((folder / _OWNER).read_bytes())
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("generation"), int) else {}


def _recorded(folder: Path) -> int:
    return int(_owner_of(folder).get("generation", 0))


def _copy_lines(source: Path, descriptor: int) -> None:
    """Copy the whole lines of ``source``."""
    good = size = 0
    with open(source, "rb") as file:
        while chunk := file.read(_CHUNK):
            write_all(descriptor, chunk)
            end = chunk.rfind(b"\n")
            good = size + end + 1 if end >= 0 else good
            size += len(chunk)
    os.ftruncate(descriptor, good)
