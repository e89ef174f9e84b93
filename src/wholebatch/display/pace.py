"""How fast a run goes and how long it will still take, from what an observer sees."""

from __future__ import annotations

import time
from collections.abc import Callable

from wholebatch.core.record import Progress, Record, RunShape


class Pace:
    """Samples per second and seconds left of one run. Reads no device; ``step`` is a comparison and an assignment.

    Running speed is that of the present epoch; its first step is not counted, because it often holds
    a warm-up. The time left is that of all steps so far, evaluations included.
    """

    def __init__(self, run: RunShape, clock: Callable[[], float] = time.perf_counter) -> None:
        self.run = run
        self._learned: int | None = None  # steps of an epoch, where only running tells
        self._clock = clock
        self._first: tuple[float, int] | None = None  # time and step of the first step seen
        self._mark: tuple[float, int] | None = None  # time and samples after the epoch's first step
        self._epoch = 0
        self._latest: Progress | None = None
        self._since = clock()  # when the present epoch began: the end of the last record
        self._samples: int | None = None  # samples at the last train record
        self._known: float | None = None  # speed of the last finished epoch

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of the present epoch, where known."""
        return self.run.steps_in(1 if self._latest is None else self._latest.epoch) or self._learned

    def step(self, progress: Progress) -> None:
        """Note an optimizer step."""
        self._latest = progress
        if progress.epoch != self._epoch:
            self._epoch = progress.epoch
            now = self._clock()
            self._mark = (now, progress.samples)
            if self._first is None:
                self._first = (now, progress.step)
                if self._samples is None:
                    self._samples = max(0, progress.samples - self.run.batch_size)

    def record(self, record: Record) -> float | None:
        """Note a finished epoch's record; return the epoch's samples per second for a train record, where known."""
        now = self._clock()
        speed = None
        if record.get("split") == "train":
            taken = record.get("seconds") or now - self._since
            speed = self._known = self._epoch_samples(record) / taken if taken > 0 else None
            self._mark = None  # an evaluation follows: its time is not the training's
            if self._latest is not None:
                self._learned = self._learned or self._latest.step_in_epoch
        self._since = now
        return speed

    def _epoch_samples(self, record: Record) -> int:
        """The samples of the epoch that ``record`` closes."""
        total = int(record.get("samples", 0))
        before, self._samples = self._samples, total
        if before is not None and total > before:
            return total - before
        return self.run.samples_per_epoch or total

    def speed(self) -> float | None:
        """Samples per second now; that of the last epoch before this one has two steps; None before that."""
        if self._mark is not None and self._latest is not None:
            taken, samples = self._clock() - self._mark[0], self._latest.samples - self._mark[1]
            if samples > 0 and taken > 0:
                return samples / taken
        return self._known

    def left(self) -> float | None:
        """Seconds until the last epoch ends; None where that is not known yet."""
        if self._first is None or self._latest is None or not self.steps_per_epoch:
            return None
        done = self._latest.step - self._first[1]
        if done < 1:
            return None
        after = range(self._latest.epoch + 1, self.run.epochs + 1)
        later = sum(self.run.steps_in(epoch) or self.steps_per_epoch for epoch in after)
        steps_left = later + max(0, self.steps_per_epoch - self._latest.step_in_epoch)
        return steps_left * (self._clock() - self._first[0]) / done
