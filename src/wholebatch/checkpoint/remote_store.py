"""Checkpoints at a URL: objects first, the manifest last, and nothing under a name that another world writes.

::

    <run>/checkpoints/step-00000120-00000002-1f3c5a7e/state.pt        step, generation and token of the world
    <run>/checkpoints/step-00000120-00000002-1f3c5a7e/manifest.json   written last: with it the checkpoint stands

There is no rename. Which one is the newest is seen by listing and verifying; there is no pointer that could be wrong.
Those of a newer world come before those of an older one, whatever their steps: an older world that wakes up may
still finish a checkpoint, which changes nothing for the newer one.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch

from wholebatch.checkpoint import manifest as manifests
from wholebatch.checkpoint.fence import FOLDER
from wholebatch.checkpoint.manifest import Checkpoint
from wholebatch.checkpoint.remote_fence import RemoteFence
from wholebatch.checkpoint.snapshot import compact, require_plain
from wholebatch.checkpoint.store import checked_score, checked_step, unreadable
from wholebatch.core.errors import CheckpointError, FencedError
from wholebatch.core.url import Url

_NAME = re.compile(r"step-(\d{8,})-(\d{8,})-([0-9a-f]+)")
_BLOCK = 1 << 22  # bytes
_Age = tuple[int, str, int]  # generation, token, step: what is newer is larger
_Names = list[str]


class RemoteStore:
    """The checkpoints of a run at a URL; the methods are those of :class:`wholebatch.checkpoint.Store`.

    Args:
        run_dir: the run folder.
        keep_last: how many of the newest are kept.
        keep_best: keep the one of the highest score besides.
        say: takes one line about a damaged checkpoint or a failed save; standard error by default.
        fence: the right to write; a store that only reads needs none.
    """

    holds_history = True  # a growing file that only one world writes is more than a URL can promise

    def __init__(
        self,
        run_dir: Url,
        *,
        keep_last: int = 3,
        keep_best: bool = False,
        say: Callable[[str], None] | None = None,
        fence: RemoteFence | None = None,
    ) -> None:
        self.run_dir, self.folder, self.fence = run_dir, run_dir / FOLDER, fence
        self._keep_last, self._keep_best = keep_last, keep_best
        self._say = say or (lambda text: print(text, file=sys.stderr))

    def save(self, state: dict[str, Any], *, step: int, score: float | None = None) -> bool:
        """Write ``state`` as the checkpoint of ``step``; return whether it stands. Raises as :meth:`Store.save`."""
        step, score = checked_step(step), checked_score(score)
        require_plain(state)
        if self.fence is None:
            self.fence = RemoteFence.take(self.run_dir)
        name = f"step-{step:08d}-{self.fence.generation:08d}-{self.fence.token}"
        try:
            self.fence.check()
            if self._open(name, thorough=True) is None:
                self._write(self.fence, self.folder / name, state, step, score)
        except OSError as error:
            reason = error.strerror or str(error)
            self._say(f"the checkpoint of step {step} could not be saved in {self.folder}: {reason}; the older stay")
            return False
        try:
            self.fence.flush()  # the history, for people
            for superseded in self._superseded(_age(name)):
                (self.folder / superseded / manifests.NAME).unlink()  # first, so that no half of it looks whole
                (self.folder / superseded).remove()
        except (OSError, FencedError) as error:
            self._say(f"step {step} is saved, but {self.folder} could not be tidied: {error}")
        return True

    def _write(self, fence: RemoteFence, target: Url, state: Any, step: int, score: float | None) -> None:
        sink = _Sink(target / manifests.STATE)
        try:
            torch.save(compact(state), cast(IO[bytes], sink))
        finally:
            sink.close()
        fence.check()
        files = {manifests.STATE: {"sha256": sink.digest.hexdigest(), "size": sink.size}}
        content = manifests.describe(files, step=step, score=score, generation=fence.generation)
        (target / manifests.NAME).write_bytes(content)

    def _superseded(self, own: _Age) -> _Names:
        """Which older ones go; unfinished ones of older worlds and of this one among them."""
        found = [name for name in self._found() if _age(name) <= own]
        good = [opened for name in found if (opened := self._open(name)) is not None]
        keep = {str(checkpoint.path) for checkpoint in good[-self._keep_last :]}
        scored = [checkpoint for checkpoint in good if checkpoint.score is not None]
        if self._keep_best and scored:
            keep.add(str(max(scored, key=_rank).path))
        return [name for name in found if name not in keep]

    # reading ----------------------------------------------------------------------------------

    def list(self) -> list[Checkpoint]:
        """Return the checkpoints that look whole by manifest and sizes, oldest first; contents are not hashed."""
        return [opened for name in self._found() if (opened := self._open(name)) is not None]

    def newest(self) -> Checkpoint | None:
        """Return the newest one whose checksums hold, or None; say in one line which ones are damaged."""
        damaged, checkpoint = [], None
        for name in reversed(self._found()):
            checkpoint = self._open(name, thorough=True)
            if checkpoint is not None:
                break
            if (self.folder / name / manifests.NAME).exists():  # otherwise its save was cut off, or it is being pruned
                damaged.append(name)
        if damaged:
            instead = "there is no good one" if checkpoint is None else f"{checkpoint.path.name} is used instead"
            self._say(f"in {self.folder}, {', '.join(damaged)}: damaged; {instead}")
        return checkpoint

    def load(self, checkpoint: Checkpoint | None = None, *, whole: bool = True) -> dict[str, Any]:
        """Return the state of a checkpoint, of the newest good one by default, with its tensors on the CPU.

        ``whole`` changes nothing: what is at a URL is whole.

        Raises:
            CheckpointError: it is damaged, or there is none.
        """
        checkpoint = checkpoint or self.newest()
        if checkpoint is None:
            raise CheckpointError(f"there is no good checkpoint in {self.folder}; start without resuming")
        path = self.folder / checkpoint.path.name / manifests.STATE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"the checkpoint {path} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != checkpoint.manifest["files"][manifests.STATE]["sha256"]:
            raise CheckpointError(f"the checkpoint is damaged ({path}); load() takes the newest good one")
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch's reader meets: the bytes are those that were written
            raise unreadable(path, checkpoint, error) from error

    def _found(self) -> _Names:
        """Every checkpoint's folder, whole or not, the newest last."""
        return sorted((name for name in self.folder.names() if _NAME.fullmatch(name)), key=_age)

    def _open(self, name: str, *, thorough: bool = False) -> Checkpoint | None:
        """The checkpoint in ``name``, or None where it is unfinished or damaged."""
        path = self.folder / name
        try:
            content, _ = manifests.parse((path / manifests.NAME).read_bytes())
            if content is None or content["step"] != _age(name)[2]:
                return None
            entry = content["files"][manifests.STATE]
            if (path / manifests.STATE).size() != entry["size"]:
                return None
            if thorough and _digest(path / manifests.STATE) != entry["sha256"]:
                return None
        except OSError:
            return None
        return Checkpoint(Path(name), content["step"], content)


class _Sink:
    """A file for ``torch.save``: it hashes, and keeps an error until :meth:`close` (compare ``durable.Sink``)."""

    def __init__(self, path: Url) -> None:
        self.digest, self.size = hashlib.sha256(), 0
        self._error: Exception | None = None
        self._file = path.open("wb")

    def write(self, data: bytes | memoryview) -> int:
        length = memoryview(data).nbytes
        if self._error is None:
            try:
                self._file.write(bytes(data))
                self.digest.update(data)
                self.size += length
            except Exception as error:
                self._error = error
        return length

    def flush(self) -> None:
        """Called by torch.save at its end; :meth:`close` does the work."""

    def close(self) -> None:
        try:
            self._file.close()
        except Exception as error:
            self._error = self._error or error
        if self._error is not None:
            if isinstance(self._error, OSError):
                raise self._error
            raise OSError(f"{type(self._error).__name__}: {self._error}") from self._error


def _digest(path: Url) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _age(name: str) -> _Age:
    match = _NAME.fullmatch(name)
    assert match is not None
    return int(match[2]), match[3], int(match[1])


def _rank(checkpoint: Checkpoint) -> tuple[float, _Age]:
    return (checkpoint.score if checkpoint.score is not None else float("-inf")), _age(checkpoint.path.name)
