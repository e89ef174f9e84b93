"""The right to write in a run folder at a URL, as far as a store without an atomic rename can give it.

Taking writes a *generation object* ``checkpoints/.generation-<n>-<token>`` and looks who else has one: the highest
has the folder. An older world finds that out when it next looks, which it does before and after every object of a
checkpoint. Between a look and a write there is a gap (object stores have no compare-and-set in common), so whatever
a world writes under a name that another one could write as well may be overwritten once; checkpoints have names of
their own world, in which nobody else writes, and those of a newer world are preferred.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from wholebatch.checkpoint.fence import FOLDER, is_earlier_world, owner
from wholebatch.core.errors import FencedError
from wholebatch.core.url import Url

_GENERATION = re.compile(r"\.generation-(\d+)-([0-9a-f]+)")
_KEPT = 3  # generation objects of older worlds, for people
_EVERY = 10.0  # seconds between two writes of a growing file, which costs the whole of it


class RemoteFence:
    """The right to write in the run folder at a URL; made by :meth:`take`. All methods may be called from any thread.

    Attributes:
        run_dir: the run folder.
        generation: how often the folder was taken, this time included.
        token: of this world.
    """

    def __init__(self, run_dir: Url, generation: int, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.run_dir, self.generation, self.token = run_dir, generation, token
        self.folder = run_dir / FOLDER
        self._lock = threading.RLock()
        self._clock = clock
        self._growing: dict[str, tuple[Url, bytearray]] = {}  # by URL: whole content
        self._waiting: set[str] = set()  # of these, what is not written yet
        self._next = clock()
        self._closed = False

    @classmethod
    def take(cls, run_dir: Url) -> Self:
        """Take the run folder over, at once.

        Raises:
            FencedError: another world took the folder at the same time, and has the higher token.
            OSError: it cannot be written.
        """
        newest = max((generation for generation, _ in _generations(run_dir)), default=0)
        fence = cls(run_dir, newest + 1, secrets.token_hex(4))
        fence.mark.write_bytes(owner(fence.generation))  # first be seen, then look
        fence.check()
        for generation, token in _generations(run_dir)[: -_KEPT - 1]:
            with suppress(OSError):
                (fence.folder / f".generation-{generation:08d}-{token}").unlink()
        return fence

    @property
    def mark(self) -> Url:
        """This world's generation object."""
        return self.folder / f".generation-{self.generation:08d}-{self.token}"

    def check(self) -> None:
        """Do nothing, while this is the newest world as far as can be seen.

        Raises:
            FencedError: it is not, or the fence was closed.
        """
        there = _generations(self.run_dir)
        mine = (self.generation, self.token)
        if self._closed or mine not in there or mine != there[-1]:
            raise FencedError(
                f"this world (generation {self.generation}) writes nothing more to the run folder "
                f"{str(self.run_dir)!r}: a newer world took it over, or the folder was closed or removed"
            )

    def replace(self, path: Url, data: bytes) -> None:
        """Make ``data`` the content of the object ``path``.

        Raises:
            FencedError: a newer world has the folder.
            OSError: it cannot be written.
        """
        with self._lock:
            self.check()
            self._growing.pop(str(path), None)
            path.write_bytes(data)

    def append(self, path: Url, data: bytes) -> None:
        """Add ``data``, whole lines, to the object ``path``: in memory, and now and then in the store.

        Raises:
            FencedError: a newer world has the folder.
            OSError: it cannot be written; the data is kept and written with the next.
        """
        with self._lock:
            name = str(path)
            if name not in self._growing:
                self._growing[name] = (path, bytearray(path.read_bytes() if path.exists() else b""))
                self._waiting.add(name)
            content = self._growing[name][1]
            before = len(content)
            content += data
            self._waiting.add(name)
            if self._clock() >= self._next:
                try:
                    self.flush()
                except BaseException:
                    del content[before:]
                    raise

    def flush(self) -> None:
        """Write what waits; raises as :meth:`append`."""
        with self._lock:
            self._next = self._clock() + _EVERY
            if not self._waiting:
                return
            self.check()
            for name in sorted(self._waiting):
                path, content = self._growing[name]
                path.write_bytes(bytes(content))
                self._waiting.discard(name)

    def close(self) -> None:
        """Write what waits, as far as that is possible, and give the right back. May be called again."""
        with suppress(OSError, FencedError):
            if not self._closed:
                self.flush()
        self._closed = True


def taken_by_earlier_world(run_dir: Url) -> bool:
    """Return whether the last one that took the run folder belonged to the launch of this process."""
    there = _generations(run_dir)
    if not there:
        return False
    try:
        content: Any = json.loads((run_dir / FOLDER / f".generation-{there[-1][0]:08d}-{there[-1][1]}").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and is_earlier_world(content)


def _generations(run_dir: Url) -> list[tuple[int, str]]:
    """(generation, token) of every world that took the folder, the newest last."""
    found = (_GENERATION.fullmatch(name) for name in (run_dir / FOLDER).names())
    return sorted((int(match[1]), match[2]) for match in found if match)
