"""The run folder around a training: taken, read where a run goes on, and given back."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wholebatch.checkpoint import Checkpoint, Every, RunState, seconds_of, store_at, taken_by_earlier_world
from wholebatch.core.errors import CheckpointError, ConfigError, PeerError, RunFolderError
from wholebatch.core.processes import Processes
from wholebatch.core.record import History, Record
from wholebatch.core.url import Url, location
from wholebatch.display import RunFolder, read_history
from wholebatch.loop import Beginning, Keeper

KEEP_LAST = 3  # checkpoints, beside the best one

Say = Callable[[str], None]


def when(
    run_dir: Any, checkpoint_every: str | None, time_limit: float | str | None, resume: Any
) -> tuple[Every | None, float | None]:
    """Return how often to save, and the seconds that a run has.

    Raises:
        ConfigError: a time that is none, or one (or ``resume=True``) without a folder.
    """
    every = None if checkpoint_every is None else Every(checkpoint_every)
    limit = None if time_limit is None else seconds_of(time_limit)
    asked = {
        "checkpoint_every": checkpoint_every,
        "time_limit": time_limit,
        "resume": resume if resume is True else None,
    }
    for name, value in asked.items():
        if value is not None and run_dir is None:
            raise ConfigError(f"{name}={value!r} needs a folder for the checkpoints; say run_dir=")
    return every, limit


@contextmanager
def opened(
    run_dir: str | os.PathLike[str] | Url | RunFolder | None,
    resume: bool | str | os.PathLike[str] | Url,
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
    first = processes.rank == 0
    folder = _folder(run_dir, resume, first, say)
    told: Say = (lambda line: None) if folder is None else folder.tell
    kept = folder if first else None
    try:
        found = _found(kept, resume, processes, told)
        beginning = None if found is None else _beginning(*found, kept, allow, told)
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
        store = store_at(folder.path, keep_last=KEEP_LAST, keep_best=True, say=lines.append, fence=folder.fence)
    return Keeper(processes, store, every=every, time_limit=time_limit, lines=lines, say=say)


def newest(folder: Path | Url, say: Say | None = None) -> dict[str, Any]:
    """Return the weights and buffers in a run's newest good checkpoint, by name.

    Raises:
        RunFolderError: there is none.
        CheckpointError: it cannot be read.
    """
    return state_of(folder, say=say).model


def state_of(folder: Path | Url, step: int | None = None, say: Say | None = None) -> RunState:
    """Return what a run's newest good checkpoint holds, or the one after ``step`` steps.

    Raises:
        RunFolderError: there is none.
        CheckpointError: it cannot be read.
    """
    store = store_at(folder, say=say)
    if step is None:
        checkpoint = store.newest()
        if checkpoint is None:
            raise RunFolderError(f"{folder} holds no good checkpoint; did its training begin?")
    else:
        found = {one.step: one for one in store.list()}
        if step not in found:
            there = ", ".join(map(str, sorted(found))) or "none"
            raise RunFolderError(f"{folder} holds no checkpoint after {step} steps; there are: {there}")
        checkpoint = found[step]
    return RunState.from_dict(store.load(checkpoint))


def _folder(run_dir: Any, resume: Any, first: bool, say: Say | None) -> RunFolder | None:
    if run_dir is None or isinstance(run_dir, RunFolder):
        return run_dir
    place = location(run_dir)
    same = resume is True or (resume is not False and _absolute(location(resume)) == _absolute(place))
    return RunFolder(place, resume=same or (first and taken_by_earlier_world(place)), say=say)


def _absolute(place: Path | Url) -> str:
    return str(place) if isinstance(place, Url) else os.path.abspath(place)


def _found(kept: RunFolder | None, resume: Any, processes: Processes, say: Say) -> tuple[Path | Url, Checkpoint] | None:
    """The run and the checkpoint to go on from, which the first process names to all."""
    found, error = None, None
    if processes.rank == 0:
        try:
            found = _look(kept, resume, say)
        except Exception as caught:
            if processes.size == 1:
                raise
            error = caught
    named = found and (str(found[0]), str(found[1].path), found[1].manifest)
    named, reason = processes.gather((named, error and f"{type(error).__name__}: {error}"))[0]
    if error is not None:
        raise error
    if reason is not None:
        raise PeerError(f"process 0 failed: {reason}")
    if named is None:
        return None
    return location(named[0]), Checkpoint(Path(named[1]), named[2]["step"], named[2])


def _look(kept: RunFolder | None, resume: Any, say: Say) -> tuple[Path | Url, Checkpoint] | None:
    """Take the folder, then look for a checkpoint: in it, where it holds this run, and else where ``resume`` says."""
    places = []
    if kept is not None:
        kept.prepare()
        places += [kept.path] if kept.resume else []
    named = None if isinstance(resume, bool) else location(resume)
    for place in [*places, *([] if named is None else [named])]:
        checkpoint = store_at(place, say=say).newest()
        if checkpoint is not None:
            return place, checkpoint
    if named is not None:
        raise CheckpointError(f"resume={str(resume)!r}: there is no good checkpoint in that folder")
    return None


def _beginning(
    run: Path | Url, checkpoint: Checkpoint, kept: RunFolder | None, allow: Sequence[str], say: Say
) -> Beginning:
    """What was saved, and the history up to there."""
    state = RunState.from_dict(store_at(run, say=say).load(checkpoint, whole=False))
    records: list[Record] = []
    lines = []
    if isinstance(state.history, list):
        records = [dict(record) for record in state.history]
    elif state.history:
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

    return Beginning(state, records, checkpoint.shards, tuple(allow), accepted)
