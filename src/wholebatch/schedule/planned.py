"""Shapes that are planned for a length: they warm up, take a course, reach ``final_lr`` at ``max_update``, stay there.

With w = warmup_steps and max_steps = max_update − w, the rate at progress t is::

    warmup_begin_lr + (base_lr − warmup_begin_lr) · t / w        t < w
    the course of the shape, from base_lr to final_lr            w ≤ t < max_update
    final_lr                                                     max_update ≤ t

The linear warm-up is that of Goyal et al. 2017, "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour"
(arXiv:1706.02677), section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wholebatch.core.errors import ConfigError
from wholebatch.schedule.arguments import check
from wholebatch.schedule.piecewise import Schedule, elementwise


class _Planned(Schedule):
    """Warm-up, course and rest; a subclass has the fields and gives ``_course``."""

    if TYPE_CHECKING:  # each shape declares its fields itself, because their order and defaults differ

        @property
        def max_update(self) -> float: ...
        @property
        def base_lr(self) -> float: ...
        @property
        def final_lr(self) -> float: ...
        @property
        def warmup_steps(self) -> float: ...
        @property
        def warmup_begin_lr(self) -> float: ...

    def __post_init__(self) -> None:
        check(self, counts=["max_update", "warmup_steps"], rates=["base_lr", "final_lr", "warmup_begin_lr"])
        if self.warmup_steps >= self.max_update:
            raise ConfigError(
                f"{type(self).__name__} got warmup_steps={self.warmup_steps} and max_update={self.max_update}; "
                "the warm-up is part of max_update and must be shorter: raise max_update or lower warmup_steps"
            )

    @property
    def end(self) -> float:
        """``max_update``: from there on the rate is ``final_lr``."""
        return self.max_update

    @property
    def base_lr_orig(self) -> float:
        """``base_lr`` by the name that Dive into Deep Learning gives it; here calling never changes it."""
        return self.base_lr

    @property
    def max_steps(self) -> float:
        """The length of the course after the warm-up, ``max_update - warmup_steps``."""
        return self.max_update - self.warmup_steps

    def get_warmup_lr(self, t: Any) -> Any:
        """Return the warm-up's straight line at ``t``, elementwise, beyond the warm-up, too; base_lr without one."""
        if not self.warmup_steps:
            return elementwise(t, lambda one: self.base_lr, lambda many: np.full_like(many, self.base_lr))
        return elementwise(t, self._warmup, self._warmup)

    def _warmup(self, t: Any) -> Any:
        return self.warmup_begin_lr + (self.base_lr - self.warmup_begin_lr) * t / self.warmup_steps

    @property
    def _edges(self) -> tuple[float, ...]:
        return (self.warmup_steps, self.max_update)

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        if index == 1:
            return self._course(t, xp)
        return self._warmup(t) if index == 0 else self.final_lr

    def _course(self, t: Any, xp: Any) -> Any:
        """The rate from the warm-up's end to ``max_update``."""
        raise NotImplementedError


@dataclass(frozen=True)
class CosineScheduler(_Planned):
    """Half a cosine from ``base_lr`` down to ``final_lr``, after a linear warm-up.

    With max_steps = max_update − warmup_steps the course is
    final_lr + (base_lr − final_lr) · (1 + cos(π (t − warmup_steps) / max_steps)) / 2.

    Loshchilov & Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts" (arXiv:1608.03983), equation 5,
    without restarts; arguments as in Dive into Deep Learning, section 12.11. Asking changes nothing: ``base_lr`` stays.

    Args:
        max_update: where ``final_lr`` is reached, warm-up included.
        base_lr: the largest rate, reached at the warm-up's end.
        final_lr: the rate from ``max_update`` on.
        warmup_steps: length of the warm-up, less than ``max_update``.
        warmup_begin_lr: the rate at t = 0 where there is a warm-up.

    Raises:
        ConfigError: ``warmup_steps >= max_update``, or a number is negative or not finite.

    >>> s = CosineScheduler(max_update=20, base_lr=0.3, final_lr=0.01, warmup_steps=5)
    >>> s(0), s(2.5), s(5), round(s(12.5), 3), s(20), s(100)
    (0.0, 0.15, 0.3, 0.155, 0.01, 0.01)
    """

    max_update: float
    base_lr: float = 0.01
    final_lr: float = 0.0
    warmup_steps: float = 0
    warmup_begin_lr: float = 0.0

    def _course(self, t: Any, xp: Any) -> Any:
        turn = xp.cos(xp.pi * (t - self.warmup_steps) / self.max_steps)
        return self.final_lr + (self.base_lr - self.final_lr) * (1 + turn) / 2


@dataclass(frozen=True)
class PolynomialScheduler(_Planned):
    """A power of the remaining part, after a linear warm-up.

    With max_steps = max_update − warmup_steps the course is
    final_lr + (base_lr − final_lr) · (1 − (t − warmup_steps) / max_steps)^power.

    Chen et al. 2018, "DeepLab" (arXiv:1606.00915), there called "poly". Arguments as of :class:`CosineScheduler`.

    Args:
        max_update: where ``final_lr`` is reached, warm-up included.
        base_lr: the rate at the warm-up's end.
        final_lr: the rate from ``max_update`` on.
        power: above 0; 1 is a straight line.
        warmup_steps: length of the warm-up, less than ``max_update``.
        warmup_begin_lr: the rate at t = 0 where there is a warm-up.

    Raises:
        ConfigError: ``warmup_steps >= max_update``, ``power`` is 0, or a number is negative or not finite.

    >>> s = PolynomialScheduler(max_update=10, base_lr=1.0, power=2)
    >>> s(0), s(5), s(10), s(11)
    (1.0, 0.25, 0.0, 0.0)
    """

    max_update: float
    base_lr: float
    final_lr: float = 0.0
    power: float = 2.0
    warmup_steps: float = 0
    warmup_begin_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, rates=["power"])
        if self.power == 0:
            raise ConfigError("PolynomialScheduler got power=0; give a power above 0, or use ConstantScheduler")

    def _course(self, t: Any, xp: Any) -> Any:
        remaining = 1 - (t - self.warmup_steps) / self.max_steps
        return self.final_lr + (self.base_lr - self.final_lr) * remaining**self.power


@dataclass(frozen=True)
class LinearScheduler(_Planned):
    """A straight line from ``base_lr`` to ``final_lr``, after a linear warm-up.

    With max_steps = max_update − warmup_steps the course is
    final_lr + (base_lr − final_lr) · (1 − (t − warmup_steps) / max_steps).
    Arguments as of :class:`CosineScheduler`.

    Raises:
        ConfigError: ``warmup_steps >= max_update``, or a number is negative or not finite.

    >>> s = LinearScheduler(max_update=10, base_lr=1.0, final_lr=0.5, warmup_steps=2)
    >>> s(1), s(2), s(6), s(10)
    (0.5, 1.0, 0.75, 0.5)
    """

    max_update: float
    base_lr: float
    final_lr: float = 0.0
    warmup_steps: float = 0
    warmup_begin_lr: float = 0.0

    def _course(self, t: Any, xp: Any) -> Any:
        return self.final_lr + (self.base_lr - self.final_lr) * (1 - (t - self.warmup_steps) / self.max_steps)


@dataclass(frozen=True)
class TrapezoidScheduler(_Planned):
    """Up, flat, down: warm-up, then ``base_lr``, then a straight line to ``final_lr`` over the last ``decay_steps``.

    For max_update − decay_steps ≤ t < max_update the rate is
    final_lr + (base_lr − final_lr) · (max_update − t) / decay_steps.

    Also called warmup-stable-decay. Hägele et al. 2024, "Scaling Laws and Compute-Optimal Training Beyond Fixed
    Training Durations" (arXiv:2405.18392); Hu et al. 2024, "MiniCPM" (arXiv:2404.06395).

    Args:
        max_update: where ``final_lr`` is reached, warm-up included.
        base_lr: the rate between warm-up and decay.
        warmup_steps: length of the warm-up.
        decay_steps: length of the decay; with the warm-up at most ``max_update``.
        final_lr: the rate from ``max_update`` on.
        warmup_begin_lr: the rate at t = 0 where there is a warm-up.

    Raises:
        ConfigError: warm-up and decay do not fit into ``max_update``, or a number is negative or not finite.

    >>> s = TrapezoidScheduler(max_update=100, base_lr=1.0, warmup_steps=10, decay_steps=20)
    >>> s(5), s(10), s(80), s(90), s(100)
    (0.5, 1.0, 1.0, 0.5, 0.0)
    """

    max_update: float
    base_lr: float
    warmup_steps: float
    decay_steps: float
    final_lr: float = 0.0
    warmup_begin_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, counts=["decay_steps"])
        if self.warmup_steps + self.decay_steps > self.max_update * (1 + 1e-12):  # 0.1 + 0.2 fits into 0.3
            raise ConfigError(
                f"TrapezoidScheduler got warmup_steps={self.warmup_steps} and decay_steps={self.decay_steps}, together "
                f"more than max_update={self.max_update}, of which both are part; raise max_update or lower one of them"
            )

    @property
    def _edges(self) -> tuple[float, ...]:
        return (self.warmup_steps, self._decay_begin, self.max_update)

    @property
    def _decay_begin(self) -> float:
        # Rounding of the difference must not put the decay before the warm-up's end.
        return max(self.warmup_steps, self.max_update - self.decay_steps)

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        if index == 2:
            length = self.max_update - self._decay_begin  # as rounded, so that the rate cannot exceed base_lr
            remaining = (self.max_update - t) / length
            return self.final_lr + (self.base_lr - self.final_lr) * remaining
        if index == 1:
            return self.base_lr
        return self._warmup(t) if index == 0 else self.final_lr
