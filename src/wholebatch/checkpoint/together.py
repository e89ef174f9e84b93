"""A checkpoint that all processes write: each what it holds of the tensors that they share, the first one the rest.

Whatever happens to one of them, all come to the same end of a save: the first one publishes, when every part stands on
the disk and its checksum is in the manifest, or nobody does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wholebatch.checkpoint.durable import sync_folder
from wholebatch.checkpoint.manifest import SHARDS
from wholebatch.checkpoint.part import Part
from wholebatch.checkpoint.store import Store
from wholebatch.core.errors import FencedError, PeerError
from wholebatch.core.processes import Processes


class Together:
    """Saves to ``store``, which the first process has; all processes call :meth:`save` alike.

    Args:
        store: None in every process but the first.
        processes: a group on the CPU that nobody else uses meanwhile, since saving may happen in a thread.
    """

    def __init__(self, store: Store | None, processes: Processes) -> None:
        self._store, self._processes = store, processes
        self._lost = False

    def save(self, state: dict[str, Any], parts: Mapping[str, Part], *, step: int, score: float | None = None) -> bool:
        """Write ``state`` and the parts of all processes; return, on all of them, whether the checkpoint stands.

        Args:
            state: with markers in the place of ``parts``; the first process's counts.
            parts: what this process holds.
            step: see :meth:`Store.save`.
            score: likewise.

        Raises:
            FencedError: a newer world has the folder; on all processes.
            PeerError: something went wrong in another process that is not about its disk.
        """
        if self._store is None:
            return self._help(parts)
        asked, error, saved = False, None, False

        def others(staged: Path) -> dict[str, Any]:
            nonlocal asked
            asked = True
            return self._lead(staged, parts)

        try:
            saved = self._store.save(state, step=step, score=score, others=others)
        except Exception as caught:
            error = caught
        if not self._lost:
            if not asked:
                self._tell(None)
            self._tell((saved, isinstance(error, FencedError), None if error is None else _told(error)))
        if error is not None:
            raise error
        return saved

    def _lead(self, staged: Path, parts: Mapping[str, Part]) -> dict[str, Any]:
        """Write the parts of all processes into ``staged``; return what the manifest says of their files."""
        folder = staged / SHARDS
        try:
            folder.mkdir()
        except OSError:
            self._tell(None)
            raise
        self._tell(str(folder))
        found = self._write(folder, parts)
        sync_folder(folder)
        return {f"{SHARDS}/{name}": entry for name, entry in found.items()}

    def _help(self, parts: Mapping[str, Part]) -> bool:
        """What the others do while the first one saves."""
        folder = self._tell(None)
        if folder is not None:
            try:
                self._write(Path(folder), parts)
            except Exception:
                if self._lost:
                    raise  # otherwise the first one knows it, and says what comes of it
        saved, fenced, reason = self._tell(None)
        if reason is not None:
            raise FencedError(reason) if fenced else PeerError(reason)
        return bool(saved)

    def _write(self, folder: Path, parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
        from wholebatch.checkpoint import sharded

        with self._in_touch():
            return sharded.write(folder, parts, self._processes)

    def _tell(self, item: Any) -> Any:
        """Return what the first process says."""
        with self._in_touch():
            return self._processes.gather(item)[0]

    @contextmanager
    def _in_touch(self) -> Iterator[None]:
        """Note where not all know what went wrong (torch says that the others are gone or silent): ask nobody again."""
        try:
            yield
        except (OSError, PeerError):
            raise
        except BaseException:
            self._lost = True
            raise


def _told(error: Exception) -> str:
    """What the first process has met, for the others; some of it names a process already."""
    if isinstance(error, FencedError | PeerError):
        return str(error)
    return f"process 0 failed: {type(error).__name__}: {error}"
