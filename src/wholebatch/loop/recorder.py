"""From steps to records: sums stay on the device until a record is written or somebody looks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wholebatch.core.digest import digest
from wholebatch.core.processes import current
from wholebatch.core.record import History, Observer, Progress, Record
from wholebatch.loop.batch_rate import BatchRate
from wholebatch.loop.metrics import Metrics
from wholebatch.step import Step, StepReport
from wholebatch.sums import Accumulator

_COUNTS = ("steps", "samples", "epoch", "within_epoch", "_steps_before")


class Recorder:
    """Counts steps and samples, sums losses, and writes the records of one run."""

    def __init__(
        self,
        step: Step,
        metrics: Metrics,
        observers: Sequence[Observer],
        log_every: int | None,
        batch_rate: BatchRate | None = None,
        digest_every: int | None = None,
        last_step: int | None = None,
    ) -> None:
        self.history = History()
        self.steps = self.samples = self.epoch = 0
        self._step, self._metrics, self._observers, self._log_every = step, metrics, observers, log_every
        self._batch_rate = batch_rate
        self._digest_every, self._last_step = digest_every, last_step
        self._of_epoch = Accumulator("loss", "weight")
        self._since_record = Accumulator("loss", "weight")
        self.within_epoch = False
        self._steps_before = 0
        self._lr: Any = 0.0
        self._owed = self._owes_digest = False  # a record of steps, until the processes meet
        self._begun = time.perf_counter()

    @property
    def step_in_epoch(self) -> int:
        """Steps of the epoch that were made."""
        return self.steps - self._steps_before

    def begin_epoch(self) -> None:
        """An epoch begins, or the one goes on within which a checkpoint was taken."""
        if self.within_epoch:
            return
        self.epoch += 1
        self.within_epoch = True
        self._steps_before = self.steps
        self._of_epoch.reset()
        self._metrics.reset()
        self._begun = time.perf_counter()

    def note_rate(self) -> None:
        """Keep the learning rate that the next step uses: the largest of the parameter groups'."""
        rate = max([group["lr"] for group in self._step.optimizer.param_groups])
        self._lr = rate.clone() if isinstance(rate, Tensor) else rate  # a schedule fills a tensor in place
        if self._batch_rate is not None:
            self._lr = self._lr * self._batch_rate.factor

    def step(self, report: StepReport) -> None:
        """A step was made."""
        self.steps += 1
        self.samples += report.samples
        logged, with_digest = _due(self._log_every, self.steps), self._digest_due()
        self.add(report)
        self._owed, self._owes_digest = self._owed or logged, self._owes_digest or with_digest
        if (self._owed or self._owes_digest) and self._step.in_touch:
            with_digest, self._owed, self._owes_digest = self._owes_digest, False, False
            values = {"loss": _mean(self._since_record), "lr": float(self._lr), "grad_norm": report.grad_norm}
            values |= self._noise()
            self._since_record.reset()
            name = {"digest": digest(self._step.model.state_dict())} if with_digest else {}
            self._write("step", "train", {**values, **name})
        if self._observers:
            progress = Progress(self.epoch, self.steps, self.step_in_epoch, self.samples, self._running)
            for observer in self._observers:
                observer.step(progress)

    def add(self, report: StepReport) -> None:
        """Add the losses of a report to those of the epoch and of the next record."""
        if report.skipped:
            return
        loss_sum = report.loss_sum
        self._of_epoch.add(loss_sum, report.weight)
        if self._log_every is not None or self._digest_every is not None:
            self._since_record.add(loss_sum, report.weight)

    def _digest_due(self) -> bool:
        every = self._digest_every
        return every is not None and (_due(every, self.steps) or self.steps == self._last_step)

    def end_epoch(self) -> None:
        """An epoch is over."""
        self.within_epoch = False
        # reading waits for the device, whose work belongs to the time
        metrics, _ = self._metrics.over_processes(current())
        values = {"loss": _mean(self._of_epoch), **metrics, "lr": float(self._lr), **self._noise()}
        self._write("epoch", "train", {**values, "seconds": round(time.perf_counter() - self._begun, 6)})

    def tested(self, values: dict[str, float]) -> None:
        """The model was evaluated on the test data."""
        self._write("epoch", "test", {name: value for name, value in values.items() if name != "samples"})

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the sums of losses, which are those of all processes."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "owed": self._owed,
            "lr": float(self._lr),
            "seconds": time.perf_counter() - self._begun,
            "of_epoch": self._of_epoch.state_dict(),
            "since_record": self._since_record.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], records: Sequence[Record]) -> None:
        """Go on where ``state`` was taken, with the ``records`` that had been written then."""
        for name in _COUNTS:
            setattr(self, name, state[name])
        self._owed = bool(state.get("owed"))
        self._lr = state["lr"]
        self._begun = time.perf_counter() - state["seconds"]
        self._of_epoch.load_state_dict(state["of_epoch"])
        self._since_record.load_state_dict(state["since_record"])
        self.history.records[:] = [dict(record) for record in records]

    def _noise(self) -> dict[str, float]:
        """The gradient noise scale and its interval, where it is known."""
        noise = self._step.noise
        found, interval = noise.value, noise.interval
        if found is None or interval is None:
            return {}
        return {"noise_scale": found, "noise_low": interval[0], "noise_high": interval[1]}

    def _running(self) -> dict[str, float]:
        """What this process knows without asking the others."""
        return {"loss": _mean(self._of_epoch), **self._metrics.running(current()), "lr": float(self._lr)}

    def _write(self, kind: str, split: str, values: Mapping[str, float | str]) -> None:
        place = {"step": self.steps, "epoch": self.epoch, "samples": self.samples, "kind": kind, "split": split}
        mode = self._step.mode
        record: Record = {**place, **values, **({} if mode is None else {"parallel": mode})}
        self.history.records.append(record)
        for observer in self._observers:
            observer.record(record)


def _due(every: int | None, steps: int) -> bool:
    return every is not None and steps % every == 0


def _mean(sums: Accumulator) -> float:
    weight = sums["weight"]
    return float(sums["loss"] / weight) if weight else float("nan")
