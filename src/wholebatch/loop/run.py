"""A run between two steps, as something that can be saved and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.checkpoint import RunState, load_plain_state, plain_state, read_parts
from wholebatch.core.errors import CheckpointError
from wholebatch.core.processes import Processes
from wholebatch.core.record import Record
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.recorder import Recorder
from wholebatch.step import Step
from wholebatch.step.split_state import model_state, model_to_load, optimizer_state, optimizer_to_load


@dataclass(frozen=True)
class Beginning:
    """What a run goes on from.

    Attributes:
        state: what was saved.
        records: the history up to there.
        shards: the folder with the tensors of which ``state`` has parts that hold nothing; None where it has none.
        allow: names of what may differ although it changes the result (:meth:`RunState.check_same`).
        accepted: called with lines worth saying when the state was taken over, and not where it was refused.
    """

    state: RunState
    records: Sequence[Record]
    shards: Path | None = None
    allow: Collection[str] = ()
    accepted: Callable[[list[str]], None] = field(default=lambda lines: None)


@dataclass(frozen=True)
class Run:
    """Everything that the next step of a run depends on."""

    step: Step
    loader: BatchLoader | StreamLoader
    recorder: Recorder
    metrics: Metrics
    epoch_schedule: LRScheduler | None
    facts: dict[str, Any]

    def state(self, sums: dict[str, Any], *, with_history: bool = False, in_parts: bool = True) -> RunState:
        """Return it as it is now; tensors are shared.

        All processes call it where the model is split (``step.split``).

        Args:
            sums: of the metrics, over all processes (:meth:`Metrics.sums_over_processes`).
            with_history: the records themselves, and not only how many there are.
            in_parts: of a split model, what each process holds; otherwise its tensors are made whole, on the first
                process (:func:`wholebatch.step.split_state.model_state`).
        """
        records = self.recorder.history.records
        schedule = None if self.epoch_schedule is None else self.epoch_schedule.state_dict()
        model, optimizer, split = self.step.model, self.step.optimizer, self.step.split
        return RunState(
            model=model_state(model, in_parts) if split else plain_state(model),
            optimizer=optimizer_state(optimizer, in_parts) if split else optimizer.state_dict(),
            step=self.step.state_dict(),
            loader=self.loader.state_dict(),
            seed=self.step.seed,
            batch_size=self.loader.batch_size or 0,
            data_length=self.loader.samples,
            sums=sums,
            history=[dict(record) for record in records] if with_history else len(records),
            config=self.facts,
            more={"recorder": self.recorder.state_dict(), "epoch_schedule": schedule},
        )

    def show(self) -> None:
        """Make the model what logical workers have come to, and report what was not reported; all processes call it."""
        left = self.step.show()
        if left is not None:
            self.recorder.add(left)

    def collect(self) -> None:
        """Bring to the first process what others have of the run's state; all processes call it."""
        self.show()
        self.step.collect()

    def sums(self, processes: Processes) -> dict[str, Any]:
        """Return the metrics' sums of the epoch so far; all processes call it."""
        processes = self.step.processes if self.step.split else processes
        return self.metrics.sums_over_processes(processes) if self.recorder.within_epoch else {}

    def go_on(self, beginning: Beginning, processes: Processes) -> None:
        """Take over what was saved.

        Raises:
            CheckpointError: it is of another run, or does not fit; nothing was taken over then, or only in memory.
            InputError: ``allow`` names something that is not compared.
        """
        saved, allow = beginning.state, beginning.allow
        lines = saved.check_same(self.state({}), allow)
        try:
            model, of_model = model_to_load(self.step.model, saved.model)
            optimizer, of_optimizer = optimizer_to_load(self.step.optimizer, saved.optimizer)
            if beginning.shards is not None:
                read_parts(beginning.shards, [*of_model, *of_optimizer])
            load_plain_state(self.step.model, model)
            _load_optimizer(self.step.optimizer, optimizer, keep_settings="optimizer" in allow)
            self.step.load_state_dict({**saved.step, "seed": self.step.seed})
            if self.epoch_schedule is not None:
                self.epoch_schedule.load_state_dict(saved.more["epoch_schedule"])
            place = {"epoch": saved.loader["epoch"], "consumed": saved.loader.get("consumed", 0)}
            self.loader.load_state_dict({**self.loader.state_dict(), **place})
            self.recorder.load_state_dict(saved.more["recorder"], beginning.records)
        except CheckpointError:
            raise  # of the files: it says what they are
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split()[:40])
            raise CheckpointError(f"the checkpoint does not fit this run ({type(error).__name__}): {reason}") from error
        lost = self.metrics.load_sums(saved.sums, processes) if self.recorder.within_epoch else []
        lines += [
            f"the metric {name} of epoch {self.recorder.epoch} is left out: no checkpoint holds it" for name in lost
        ]
        beginning.accepted(lines)

    def skipped_windows(self) -> int:
        """How many batches of the epoch to pass over: a stream cannot be told where to begin."""
        return self.recorder.step_in_epoch if isinstance(self.loader, StreamLoader) else 0


def _load_optimizer(optimizer: Optimizer, state: dict[str, Any], *, keep_settings: bool) -> None:
    """Load the state; with ``keep_settings`` the groups keep the settings that they have now."""
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    with torch.no_grad():
        optimizer.load_state_dict(state)
    if keep_settings:
        for group, settings in zip(optimizer.param_groups, own, strict=True):
            group.update(settings)
