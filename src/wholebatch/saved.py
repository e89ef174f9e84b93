"""The run folder around a training: taken, read where a run goes on, and given back."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wholebatch.checkpoint import Checkpoint, Every, RunState, Store
from wholebatch.core.errors import CheckpointError, PeerError, RunFolderError
from wholebatch.core.processes import Processes
from wholebatch.core.record import History, Record
from wholebatch.display import RunFolder, read_history
from wholebatch.loop import Beginning, Keeper

KEEP_LAST = 3  # checkpoints, beside the best one

Say = Callable[[str], None]


@contextmanager
def opened(
    run_dir: str | os.PathLike[str] | RunFolder | None,
    resume: bool | str | os.PathLike[str],
    allow: Sequence[str],
    processes: Processes,
    say: Say | None,
) -> Iterator[tuple[RunFolder | None, Beginning | None, Say]]:
    """Take the run folder, and read what the run goes on from; all processes call it, the first one takes.

    Gives the folder (in the first process), what to go on from (where there is something), and what takes a line.

    Raises:
        RunFolderError: the folder cannot be made, or holds another run.
        CheckpointError: there is no good checkpoint where ``resume`` says.
        PeerError: one of these happened to the first process.
    """
    folder = _folder(run_dir, resume, say)
    told: Say = (lambda line: None) if folder is None else folder.tell
    kept = folder if processes.rank == 0 else None
    resume = True if folder is not None and folder.resume else resume
    source = folder.path if resume is True and folder is not None else None if not resume else Path(str(resume))
    try:
        checkpoint = _found(kept, source, resume is not True, processes, told)
        beginning = None if checkpoint is None else _beginning(checkpoint, kept, allow, told)
        if kept is not None and beginning is None and kept.resume:
            kept.go_on([])  # afresh: what an earlier try left of a history does not count
        yield kept, beginning, told
    except BaseException as error:
        if kept is not None:
            kept.end(History(), error)  # does nothing where the training ended it
        raise


def keeper(
    folder: RunFolder | None, processes: Processes, say: Say, *, every: Every | None, time_limit: float | None
) -> Keeper:
    """Return what saves a run into ``folder``, which is None in every process but the first."""
    lines: deque[str] = deque()  # of the thread that saves
    store = None
    if folder is not None:
        store = Store(folder.path, keep_last=KEEP_LAST, keep_best=True, say=lines.append, fence=folder.fence)
    return Keeper(processes, store, every=every, time_limit=time_limit, lines=lines, say=say)


def newest(folder: Path, say: Say | None = None) -> dict[str, Any]:
    """Return the weights and buffers in a run's newest good checkpoint, by name.

    Raises:
        RunFolderError: there is none.
        CheckpointError: it cannot be read.
    """
    store = Store(folder, say=say)
    checkpoint = store.newest()
    if checkpoint is None:
        raise RunFolderError(f"{folder} holds no good checkpoint; did its training begin?")
    return RunState.from_dict(store.load(checkpoint)).model


def restarted() -> bool:
    """Return whether torchrun started this process anew, after it had lost another."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0) > 0


def _folder(run_dir: Any, resume: Any, say: Say | None) -> RunFolder | None:
    if run_dir is None or isinstance(run_dir, RunFolder):
        return run_dir
    same = resume is True or (resume is not False and os.path.abspath(resume) == os.path.abspath(run_dir))
    return RunFolder(run_dir, resume=same or restarted(), say=say)


def _found(
    kept: RunFolder | None, source: Path | None, needed: bool, processes: Processes, say: Say
) -> Checkpoint | None:
    """The checkpoint to go on from, which the first process names to all."""
    found, error = None, None
    if processes.rank == 0:
        try:
            if kept is not None:
                kept.prepare()
            found = None if source is None else Store(source, say=say).newest()
            if found is None and source is not None and needed:
                raise CheckpointError(f"resume={str(source)!r}: there is no good checkpoint in that folder")
        except Exception as caught:
            if processes.size == 1:
                raise
            error = caught
    named, reason = processes.gather((found and (str(found.path), found.manifest), error and _said(error)))[0]
    if error is not None:
        raise error
    if reason is not None:
        raise PeerError(f"process 0 failed: {reason}")
    return None if named is None else Checkpoint(Path(named[0]), named[1]["step"], named[1])


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _beginning(checkpoint: Checkpoint, kept: RunFolder | None, allow: Sequence[str], say: Say) -> Beginning:
    """What was saved, and the history up to there."""
    run = checkpoint.path.parent.parent
    state = RunState.from_dict(Store(run, say=say).load(checkpoint))
    records: list[Record] = []
    lines = []
    if isinstance(state.history, int) and state.history:
        records = read_history(run).records[: state.history]
        if len(records) < state.history:
            lines.append(
                f"the history in {run} lacks {state.history - len(records)} records from before the checkpoint"
            )

    def accepted(more: list[str]) -> None:
        if kept is not None:
            kept.go_on(records)
            for line in [*lines, *more]:
                say(line)

    return Beginning(state, records, tuple(allow), accepted)
