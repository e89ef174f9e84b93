"""Checkpoints on disk: there whole or not at all, verified when read, pruned when superseded.

::

    <run>/checkpoints/step-00000120/state.pt        what torch.load(weights_only=True) reads
    <run>/checkpoints/step-00000120/shards/         where tensors were split over processes: their parts
    <run>/checkpoints/step-00000120/manifest.json   checksums, step, score, versions, generation; written last
    <run>/checkpoints/latest                        the name of the newest one, for people; never trusted
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from wholebatch.checkpoint import manifest as manifests
from wholebatch.checkpoint.durable import sync_folder, write_file, write_tensors
from wholebatch.checkpoint.fence import FOLDER, Fence
from wholebatch.checkpoint.manifest import Checkpoint
from wholebatch.checkpoint.part import put_back, whole_parts
from wholebatch.checkpoint.snapshot import compact, require_plain
from wholebatch.core.errors import CheckpointError, InputError, InputTypeError

LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")
_Paths = list[Path]  # inside the class, "list" is its method
_Checkpoints = list[Checkpoint]


class Store:
    """The checkpoints of a run.

    A store that only reads needs no fence. The first ``save`` without one takes the folder; a training loop
    takes it at its start instead (``Store(run, fence=Fence.take(run))``) and closes the fence at its end.

    Args:
        folder: the run folder; checkpoints are in its ``checkpoints/``.
        keep_last: how many of the newest are kept.
        keep_best: keep the one of the highest score besides.
        say: takes one line about a damaged checkpoint or a failed save; standard error by default.
        fence: the right to write.

    Raises:
        InputError: a ``keep_last`` below 1.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     store = Store(run)
    ...     store.save({"weight": torch.ones(2)}, step=7)
    ...     store.newest().path.name, store.load()
    True
    ('step-00000007', {'weight': tensor([1., 1.])})
    """

    holds_history = False  # it grows in a file of the run folder; a checkpoint says how much of it counts

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_best: bool = False,
        say: Callable[[str], None] | None = None,
        fence: Fence | None = None,
    ) -> None:
        if isinstance(keep_last, bool) or not isinstance(keep_last, int) or keep_last < 1:
            raise InputError(f"keep_last={keep_last!r}: expected a whole number of at least 1")
        self.run_dir = Path(os.path.abspath(folder))
        self.folder = self.run_dir / FOLDER
        self.fence = fence
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._say = say or (lambda text: print(text, file=sys.stderr))
        self._damaged: set[Path] = set()  # seen to be; not counted among those that are kept

    # writing ----------------------------------------------------------------------------------

    def save(
        self,
        state: dict[str, Any],
        *,
        step: int,
        score: float | None = None,
        others: Callable[[Path], dict[str, Any]] | None = None,
    ) -> bool:
        """Write ``state`` as the checkpoint of ``step``; return whether a good one of that step stands.

        A good one that exists is kept as it is, a damaged one replaced. Where the disk does not take it (full, read
        only, gone), the older ones stay, nothing half-written is left, one line says so, and the answer is False:
        training can go on. Older checkpoints are pruned only after this one stands.

        Args:
            state: nested dicts and lists of tensors, numbers and strings.
            step: updates made, at least 0.
            score: the larger, the better (negate a loss); None or NaN never is the best.
            others: writes more files into the folder that is being made, and returns what the manifest says of them.

        Raises:
            FencedError: a newer world has the folder; nothing was written.
            InputError: ``step`` is negative.
            InputTypeError: ``state`` holds something else; the message names it.
        """
        step, score = checked_step(step), checked_score(score)
        require_plain(state)
        target = self.folder / f"step-{step:08d}"
        try:
            fence = self._writer()
            if self._open(target, thorough=True)[0] is None:
                self._write(fence, target, state, others, step, score)
        except OSError as error:
            reason = error.strerror or str(error)
            self._say(
                f"the checkpoint of step {step} could not be saved in {self.folder}: {reason}; the older ones stay"
            )
            return False
        self._tidy(fence, target, step)
        return True

    def _writer(self) -> Fence:
        if self.fence is None:
            self.fence = Fence.take(self.run_dir)
        return self.fence

    def _write(self, fence: Fence, target: Path, state: Any, others: Any, step: int, score: float | None) -> None:
        """Write all of it beside, flush it, and then give it its name."""
        staged = fence.stage(target.name)
        try:
            with fence.translated():
                files = {} if others is None else others(staged)
                files[manifests.STATE] = write_tensors(staged / manifests.STATE, compact(state))
                content = manifests.describe(files, step=step, score=score, generation=fence.generation)
                write_file(staged / manifests.NAME, content)
                sync_folder(staged)
            fence.discard(target)  # there only where it is damaged
            fence.publish(staged, target)
        finally:
            shutil.rmtree(staged, ignore_errors=True)  # a path that is gone where a newer world took over
        self._damaged.discard(target)

    def _tidy(self, fence: Fence, target: Path, step: int) -> None:
        """Point to the new checkpoint, then remove what is not kept; the new one stands whatever fails here."""
        try:
            fence.replace(self.folder / LATEST, f"{target.name}\n".encode())
            for path in self._superseded(step):
                fence.discard(path)
        except OSError as error:
            self._say(f"{target} is saved, but {self.folder} could not be tidied: {error.strerror or error}")

    def _superseded(self, step: int) -> _Paths:
        """Which checkpoints go after that of ``step``: older ones that are not the last ``keep_last`` or the best.

        Later ones stay: where a run went on from an older one, they are damaged (and are replaced when their
        step comes) or somebody's choice.
        """
        good = [checkpoint for checkpoint in self.list() if checkpoint.path not in self._damaged]
        past = [checkpoint for checkpoint in good if checkpoint.step <= step]
        keep = {checkpoint.path for checkpoint in past[-self._keep_last :]}
        scored = [checkpoint for checkpoint in good if checkpoint.score is not None]
        if self._keep_best and scored:
            keep.add(max(scored, key=_rank).path)
        return [path for path in self._found() if path not in keep and _step_of(path) < step]

    # reading ----------------------------------------------------------------------------------

    def list(self) -> _Checkpoints:
        """Return the checkpoints that look whole by manifest and sizes, oldest first; contents are not hashed."""
        return [checkpoint for path in self._found() if (checkpoint := self._open(path)[0]) is not None]

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint whose checksums hold, or None; say in one line which ones are damaged."""
        return self._first_good(list(reversed(self._found())))

    def best(self) -> Checkpoint | None:
        """Return the one of the highest score whose checksums hold, or None; say as :meth:`newest` does."""
        ranked = sorted((c for c in self.list() if c.score is not None), key=_rank, reverse=True)
        return self._first_good([checkpoint.path for checkpoint in ranked])

    def load(self, checkpoint: Checkpoint | None = None, *, whole: bool = True) -> dict[str, Any]:
        """Return the state of a checkpoint, of the newest good one by default, with its tensors on the CPU.

        Args:
            checkpoint: which.
            whole: also of the tensors that were split over processes; otherwise a :class:`Part`, which holds nothing,
                is in the place of each, to be read from ``shards/``, whose checksums are not looked at then.

        Raises:
            CheckpointError: it is damaged, or there is none.
        """
        if checkpoint is None:
            checkpoint = self.newest()
            if checkpoint is None:
                raise CheckpointError(f"there is no good checkpoint in {self.folder}; start without resuming")
        else:
            checkpoint, reason = self._open(checkpoint.path, thorough=True, only=None if whole else manifests.STATE)
            if checkpoint is None:
                raise CheckpointError(f"the checkpoint is damaged ({reason}); load() takes the newest good one")
        try:
            state = torch.load(checkpoint.path / manifests.STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch's reader meets: the bytes are those that were written
            raise unreadable(checkpoint.path, checkpoint, error) from error
        if checkpoint.shards is None:
            return state
        state = put_back(state)
        return whole_parts(checkpoint.shards, state) if whole else state

    def _first_good(self, paths: _Paths) -> Checkpoint | None:
        damaged = []
        checkpoint = None
        for path in paths:
            checkpoint, reason = self._open(path, thorough=True)
            if checkpoint is not None:
                break
            if path.exists():  # otherwise its writer pruned it just now
                self._damaged.add(path)
                damaged.append(f"{path.name} ({reason})")
        if damaged:
            instead = "there is no good one" if checkpoint is None else f"{checkpoint.path.name} is used instead"
            verb = "is" if len(damaged) == 1 else "are"
            self._say(f"in {self.folder}, {', '.join(damaged)} {verb} damaged; {instead}")
        return checkpoint

    def _found(self) -> _Paths:
        """Every checkpoint folder, damaged or not, by step."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        steps = {int(match[1]): name for name in names if (match := _STEP.fullmatch(name))}
        return [self.folder / steps[step] for step in sorted(steps)]

    def _open(self, path: Path, *, thorough: bool = False, only: str | None = None) -> tuple[Checkpoint | None, str]:
        """The checkpoint in ``path``, or None and what is wrong with it, or with ``only`` that one of its files."""
        content, reason = manifests.read(path)
        if content is None:
            return None, reason
        if path.name != f"step-{content['step']:08d}":
            return None, f"{manifests.NAME} is of step {content['step']}"
        files = content["files"] if only is None else {only: content["files"][only]}
        reason = manifests.damage(path, files, thorough=thorough)
        return (None, reason) if reason else (Checkpoint(path, content["step"], content), "")


def _rank(checkpoint: Checkpoint) -> tuple[float, int]:
    return (-math.inf if checkpoint.score is None else checkpoint.score, checkpoint.step)


def _step_of(path: Path) -> int:
    """The step that a checkpoint folder's name says."""
    return int(path.name.removeprefix("step-"))


def unreadable(path: object, checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    """Return what to say of a file whose checksum holds, and which this torch cannot read."""
    reason, written = str(error).split("\n")[0], checkpoint.manifest["versions"]["torch"]
    return CheckpointError(
        f"{path} is undamaged, but torch {torch.__version__} cannot read what torch {written} wrote: {reason}"
    )


def checked_step(step: int) -> int:
    """Return ``step``, a whole number of at least 0."""
    if isinstance(step, bool) or not isinstance(step, int):
        raise InputTypeError(f"step={step!r}: expected a whole number, got a {type(step).__name__}")
    if step < 0:
        raise InputError(f"step={step}: expected at least 0")
    return step


def checked_score(score: float | None) -> float | None:
    """Return a finite number, or None; infinities are clipped, since JSON has no word for them."""
    if score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError):
        raise InputTypeError(f"score={score!r}: expected a number or None, got a {type(score).__name__}") from None
    return None if math.isnan(number) else max(-sys.float_info.max, min(sys.float_info.max, number))
