"""The schedule of the learning rate of a training: in which unit it counts, and whether it lasts as long."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core.errors import ConfigError, InputError, nearest
from wholebatch.core.record import RunShape
from wholebatch.schedule import Attached, attach
from wholebatch.schedule.piecewise import end_of
from wholebatch.step.options import check_optimizer

UNITS = ("step", "epoch")
_SHORT = 0.7  # of the training; a schedule that ends before was hardly meant so


def check_unit(schedule_unit: Any) -> None:
    """See that a schedule counts what training knows.

    Raises:
        ConfigError: it does not.
    """
    if schedule_unit not in UNITS:
        hint = nearest(str(schedule_unit), UNITS)
        raise ConfigError(f"schedule_unit={schedule_unit!r}; expected 'step' or 'epoch'{hint}")


def attached_to(optimizer: Any, schedule: Any) -> LRScheduler | None:
    """Return ``schedule`` as an ``LRScheduler`` of ``optimizer``; None where there is none.

    Raises:
        InputTypeError: the optimizer is none, or the schedule no function of progress.
        InputError: the schedule is an ``LRScheduler`` of another optimizer.
    """
    if schedule is None:
        return None
    check_optimizer(optimizer)
    if not isinstance(schedule, LRScheduler):
        return attach(schedule, optimizer)
    if schedule.optimizer is not optimizer:
        raise InputError(
            f"the {type(schedule).__name__} belongs to another optimizer than the one given, so it would change "
            "nothing; make it of this optimizer, or give a function of progress, which is attached"
        )
    return schedule


def warn_of_short_schedule(schedule: Any, shape: RunShape, unit: str) -> None:
    """Warn, where the caller's caller's caller is, that a schedule ends long before training does.

    One that was written for epochs does where steps are counted.
    """
    whole = shape.epochs if unit == "epoch" else shape.steps
    end = _end(schedule)
    if whole is None or end >= _SHORT * whole:
        return
    repair = f"plan it for {whole} {unit}s"
    if unit == "step":
        repair += " or, if it counts epochs, say schedule_unit='epoch'"
    warnings.warn(
        f"the schedule ends after {end:g} {unit}s, but training goes on for {whole}; {repair}",
        UserWarning,
        stacklevel=4,  # wb.train is wrapped once
    )


def _end(schedule: Any) -> float:
    """Where a schedule ends, infinity where it does not or only it knows."""
    if isinstance(schedule, Attached):
        schedule = schedule.schedule
    elif isinstance(schedule, LRScheduler):
        return float(getattr(schedule, "T_max", math.inf))
    return min(end_of(schedule), getattr(schedule, "max_update", math.inf))
