"""When a run is saved, and when it stops before its end: how often, signals, the time that there is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

from torch import distributed

from wholebatch.checkpoint import Background, Every, RemoteStore, Store, Together, require_plain, take_out
from wholebatch.core.errors import InputTypeError
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Group, Processes
from wholebatch.loop.run import Run
from wholebatch.loop.signals import INTERRUPT, SAVE, TERMINATE, Signals, exit_code

_TIME_IS_UP, _DUE = 8, 16  # further bits beside those of the signals
_STOP = INTERRUPT | TERMINATE | _TIME_IS_UP
_AT_MOST_EVERY = 60.0  # seconds between two checkpoints where nobody said how often


class Keeper:
    """Saves a run in the background, and stops it in an orderly way.

    Every process has one; the first one's has the store, and decides what depends on a clock. After every step the
    processes tell each other in one small exchange what each of them was asked for, so that all do the same after
    the same step. One process exchanges nothing.

    A model that is split over processes is saved by all of them, each its parts, in the background of each, on a
    process group of their own; at a URL it is gathered, and the first process saves it.

    Args:
        processes: who trains together.
        store: where checkpoints go; None in every process but the first.
        every: how often; None is after an epoch, at most once a minute, and at the end.
        time_limit: seconds from now until which the run must have saved and stopped.
        lines: what the store says, from the thread that saves.
        say: takes these lines after the next step.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        processes: Processes,
        store: Store | RemoteStore | None,
        *,
        every: Every | None = None,
        time_limit: float | None = None,
        lines: deque[str] | None = None,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stopped = False
        self._processes, self._every, self._limit, self._say, self._clock = processes, every, time_limit, say, clock
        self._store = store
        self._background = None if store is None else Background(store)
        self._in_parts = False  # whether all processes save together, each its parts
        self._group: Any = None  # in which they do
        self._first = processes.rank == 0
        self._signals = Signals()
        self._lines: deque[str] = deque() if lines is None else lines
        self._begun = self._latest = clock()
        self._last_saved: float | None = None
        self._longest_step = self._longest_save = 0.0
        self._pending = False
        self._asked = 0  # since the processes met

    # around the training ------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._signals.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        group, self._group = self._group, None
        try:
            # together: a launcher ends the others as soon as it sees that one has gone
            if self.stopped or (group is not None and kind is None):
                self._processes.exchange(0)
        finally:
            self._signals.close()
            if group is not None:
                distributed.destroy_process_group(group)

    def begin(self, run: Run) -> None:
        """See that the run can be saved; where its model is split, all processes make ready to save together.

        Raises:
            InputTypeError: part of its state is something that a checkpoint cannot hold.
            PeerError: that happened to another process.
        """
        at_url = isinstance(self._store, RemoteStore)
        self._in_parts = run.step.split and not self._processes.exchange(at_url)[0]
        if self._store is not None or run.step.split:
            state, _ = take_out(self._state(run, {}))
            self._see_plain(state, run.step.split)
        if self._in_parts:
            self._group = _group_to_save()
            store = self._store if isinstance(self._store, Store) else None
            self._background = Background(Together(store, Group(self._group)))
        self._latest = self._clock()

    def _see_plain(self, state: dict[str, Any], together: bool) -> None:
        """See that it can be saved, ``together`` in all processes: who goes on waits for the others."""
        refused = None
        try:
            require_plain(state, "the run")
        except InputTypeError as error:
            if not together:
                raise
            refused = error
        if together:
            raise_together(self._processes, refused)

    def close(self) -> None:
        """Wait for the save that is under way, and say what there is to say."""
        try:
            if self._background is not None:
                self._background.close()
        finally:
            self._speak()

    # within the training ------------------------------------------------------------------------

    def after_step(self, run: Run, steps_per_epoch: int | None) -> bool:
        """Do what is due; return whether to stop, orderly.

        Raises:
            SystemExit: a signal asked to stop; the run is saved. 143 for SIGTERM, 130 for SIGINT.
            FencedError: a newer world has the run folder.
        """
        self._asked |= self._wanted(run.recorder.steps, None)
        if not run.step.in_touch:
            return False  # processes that make local steps do not meet after each of them
        wanted, self._asked = self._agree(self._asked), 0
        if not wanted:
            return False
        if not wanted & _STOP and run.recorder.step_in_epoch == steps_per_epoch:
            self._pending = True  # the state after the epoch's end is the better one of this step
            return False
        return self._obey(wanted, run, None)

    def after_epoch(self, run: Run, score: float | None, last: bool) -> bool:
        """Do what is due after an epoch's evaluation; return and raise as :meth:`after_step`.

        Args:
            run: the run.
            score: of the model, the larger the better.
            last: whether the training is over.
        """
        wanted = self._asked | self._wanted(run.recorder.steps, run.recorder.epoch)
        self._asked = 0
        wanted = self._agree(wanted | _DUE if last or self._pending else wanted)
        self._pending = False
        if last:
            wanted &= ~_TIME_IS_UP  # there is nothing left to stop
        return self._obey(wanted, run, score) if wanted else False

    def _wanted(self, step: int, epoch: int | None) -> int:
        """What this process was asked for; the first one's clock counts for all."""
        wanted = self._signals.take()
        if self._first:
            now = self._clock()
            self._longest_step, self._latest = max(self._longest_step, now - self._latest), now
            if self._due(step, now, epoch):
                wanted |= _DUE
            needed = self._longest_save + 2 * self._longest_step
            if self._limit is not None and now - self._begun + needed >= self._limit:
                wanted |= _TIME_IS_UP
        return wanted

    def _due(self, step: int, now: float, epoch: int | None) -> bool:
        if self._every is None:
            return epoch is not None and (self._last_saved is None or now - self._last_saved >= _AT_MOST_EVERY)
        if (self._every.unit == "epochs") != (epoch is not None):
            return False
        return self._every.due(step, now - self._begun, epoch)

    def _agree(self, wanted: int) -> int:
        if self._lines:
            self._speak()
        if self._processes.size == 1:
            return wanted
        together = 0
        for of_one in self._processes.exchange(wanted):
            together |= of_one
        return together

    def _obey(self, wanted: int, run: Run, score: float | None) -> bool:
        if wanted & (_STOP | SAVE | _DUE):
            self._save(run, score, wait=bool(wanted & _STOP))
        if not wanted & _STOP:
            return False
        self.stopped = True
        self.close()
        if wanted & (INTERRUPT | TERMINATE):
            raise SystemExit(exit_code(wanted))
        return True

    def _save(self, run: Run, score: float | None, wait: bool) -> None:
        """Save; all processes call it, since the metrics' sums are those of all."""
        begun = self._clock()
        run.collect()
        sums = run.sums(self._processes)
        if run.step.split and self._background is None:
            self._state(run, sums)  # the others' parts come from here
        with run.step.whole():
            if self._background is not None:
                self._background.save(self._state(run, sums), step=run.recorder.steps, score=score)
        if self._background is not None and (wait or (self._limit is not None and not self._longest_save)):
            self._background.wait()  # once, to know how long it takes
        self._last_saved = self._latest = self._clock()
        self._longest_save = max(self._longest_save, self._last_saved - begun)

    def _state(self, run: Run, sums: dict[str, Any]) -> dict[str, Any]:
        """What is saved: in this process's parts where all save together."""
        with_history = self._store is not None and self._store.holds_history
        return run.state(sums, with_history=with_history, in_parts=self._in_parts).to_dict()

    def _speak(self) -> None:
        while self._lines:
            self._say(self._lines.popleft())


def _group_to_save() -> Any:
    """A process group on the CPU, in which processes wait for each other as long as they do while training."""
    world: Any = distributed.group.WORLD
    patience: timedelta = world._get_backend(world._device_types[0]).options._timeout
    return distributed.new_group(backend="gloo", timeout=patience, group_desc="wholebatch checkpoints")
