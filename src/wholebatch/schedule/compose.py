"""Schedules made of schedules: a warm-up before one, several in a row.

The parts may be schedules or any functions of one number; such a function is asked number by number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wholebatch.core.errors import ConfigError, InputTypeError
from wholebatch.schedule.arguments import check, increasing
from wholebatch.schedule.piecewise import Schedule, end_of, evaluate


@dataclass(frozen=True)
class Warmup(Schedule):
    """A straight line from ``begin_lr`` to s(0), then the schedule: for t ≥ steps the rate is s(t − steps).

    So the schedule starts when the warm-up is over, and the whole is ``steps`` longer than the schedule. Goyal et al.
    2017 (arXiv:1706.02677), section 2.2.

    Args:
        schedule: what follows the warm-up.
        steps: length of the warm-up; with 0 there is none.
        begin_lr: the rate at t = 0.

    Raises:
        ConfigError: a number is negative or not finite.
        InputTypeError: ``schedule`` cannot be called.

    >>> from wholebatch.schedule.open_ended import SquareRootScheduler
    >>> s = Warmup(SquareRootScheduler(1.0), steps=4)
    >>> s(0), s(1), s(4), s(7)
    (0.0, 0.25, 1.0, 0.5)
    """

    schedule: Callable[[Any], Any]
    steps: float
    begin_lr: float = 0.0

    def __post_init__(self) -> None:
        _check_callable("Warmup", self.schedule)
        check(self, counts=["steps"], rates=["begin_lr"])

    @property
    def end(self) -> float:
        """Where the schedule ends, the warm-up included."""
        return self.steps + end_of(self.schedule)

    @property
    def _edges(self) -> tuple[float, ...]:
        return (self.steps,)

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        if index == 1:
            return evaluate(self.schedule, t - self.steps)
        return self.begin_lr + (evaluate(self.schedule, 0) - self.begin_lr) * t / self.steps


@dataclass(frozen=True)
class Joined(Schedule):
    """Several schedules in a row: the first before ``boundaries[0]``, then each counts from its own boundary.

    With boundaries b₁ < b₂ < …: s₁(t) for t < b₁, s₂(t − b₁) for b₁ ≤ t < b₂, and so on.

    Args:
        schedules: at least one.
        boundaries: strictly increasing, above 0, one fewer than schedules.

    Raises:
        ConfigError: the numbers of schedules and boundaries do not fit, or the boundaries do not increase from above 0.
        InputTypeError: a schedule cannot be called.

    >>> from wholebatch.schedule.open_ended import ConstantScheduler
    >>> from wholebatch.schedule.planned import LinearScheduler
    >>> s = Joined([ConstantScheduler(0.4), LinearScheduler(10, base_lr=0.2)], boundaries=[30])
    >>> s(29.5), s(30), s(35), s(40)
    (0.4, 0.2, 0.1, 0.0)
    """

    schedules: tuple[Callable[[Any], Any], ...]
    boundaries: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.schedules, list | tuple):
            raise InputTypeError(f"Joined needs a list of schedules; got {type(self.schedules).__name__}")
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "boundaries", increasing("Joined", "boundaries", self.boundaries))
        for place, schedule in enumerate(self.schedules):
            _check_callable("Joined", schedule, f" at place {place}")
        if len(self.boundaries) != len(self.schedules) - 1:
            raise ConfigError(
                f"Joined got {len(self.schedules)} schedules and {len(self.boundaries)} boundaries; "
                "give one boundary between each two schedules"
            )
        if self.boundaries and self.boundaries[0] == 0:
            raise ConfigError("Joined got a first boundary of 0, before which nothing is; leave out the first schedule")

    @property
    def end(self) -> float:
        """Where the last schedule ends."""
        return sum(self.boundaries[-1:]) + end_of(self.schedules[-1])

    @property
    def _edges(self) -> tuple[float, ...]:
        return self.boundaries

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        return evaluate(self.schedules[index], t - self.boundaries[index - 1] if index else t)


def _check_callable(owner: str, schedule: Any, where: str = "") -> None:
    if not callable(schedule):
        raise InputTypeError(
            f"{owner} needs a function of progress{where}; got {type(schedule).__name__} {schedule!r:.60}. "
            "For a fixed rate, use ConstantScheduler"
        )
