"""Shapes that have no planned length: constant, decay by a factor, drops at given counts, inverse square root.

None of them warms up by itself; :class:`~wholebatch.schedule.compose.Warmup` puts a warm-up before any of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from wholebatch.schedule.arguments import check, increasing
from wholebatch.schedule.piecewise import Schedule


def _power(factor: float, t: Any) -> Any:
    """``factor ** t``, infinity where it is too large for a float."""
    if isinstance(t, np.ndarray):
        with np.errstate(over="ignore", under="ignore"):
            return factor**t
    try:
        return factor**t
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class ConstantScheduler(Schedule):
    """``base_lr`` always.

    Raises:
        ConfigError: ``base_lr`` is negative or not finite.

    >>> s = ConstantScheduler(0.1)
    >>> s(0), s(1000)
    (0.1, 0.1)
    """

    base_lr: float

    def __post_init__(self) -> None:
        check(self, rates=["base_lr"])

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        return self.base_lr


@dataclass(frozen=True)
class FactorScheduler(Schedule):
    """Exponential decay: max(stop_factor_lr, base_lr · factor^t).

    As in Dive into Deep Learning, section 12.11, but a function of t: asking twice gives the same answer twice, and
    t = 0 gives ``base_lr``. A factor above 1 grows (a range test); the rate is infinite where floats end.

    Args:
        factor: what one unit of progress multiplies the rate by.
        base_lr: the rate at t = 0.
        stop_factor_lr: the rate never falls below it.

    Raises:
        ConfigError: a number is negative or not finite.

    >>> s = FactorScheduler(0.5, base_lr=1.0, stop_factor_lr=0.1)
    >>> s(0), s(1), s(2), s(9)
    (1.0, 0.5, 0.25, 0.1)
    """

    factor: float
    base_lr: float
    stop_factor_lr: float = 1e-7

    def __post_init__(self) -> None:
        check(self, rates=["factor", "base_lr", "stop_factor_lr"])

    @property
    def end(self) -> float:
        """Where the rate reaches ``stop_factor_lr``; ``inf`` where it never does."""
        if self.factor >= 1:
            return math.inf
        if self.factor == 0 or self.base_lr <= self.stop_factor_lr:
            return 0.0
        if self.stop_factor_lr == 0:
            return math.inf
        return (math.log(self.stop_factor_lr) - math.log(self.base_lr)) / math.log(self.factor)

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        rate = self.base_lr * _power(self.factor if self.base_lr else 1.0, t)  # 0 · inf would be NaN
        return np.maximum(self.stop_factor_lr, rate) if xp is np else max(self.stop_factor_lr, rate)


@dataclass(frozen=True)
class MultiFactorScheduler(Schedule):
    """Drops at given counts: base_lr · factor^k, where k is how many entries of ``step`` are at most t.

    The schedule of He et al. 2016, "Deep Residual Learning" (arXiv:1512.03385), section 4.2.

    Args:
        step: strictly increasing counts; the new rate holds from the count on.
        factor: what each of them multiplies the rate by.
        base_lr: the rate before the first one.

    Raises:
        ConfigError: ``step`` does not increase strictly, or a number is negative or not finite.

    >>> s = MultiFactorScheduler(step=[15, 30], factor=0.5, base_lr=0.4)
    >>> s(14), s(15), s(29.5), s(30)
    (0.4, 0.2, 0.2, 0.1)
    """

    step: tuple[float, ...]
    factor: float
    base_lr: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", increasing("MultiFactorScheduler", "step", self.step))
        check(self, rates=["factor", "base_lr"])

    @property
    def end(self) -> float:
        """The last of ``step``; ``inf`` without any."""
        return self.step[-1] if self.step else math.inf

    @property
    def _edges(self) -> tuple[float, ...]:
        return self.step

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        return self.base_lr * _power(self.factor if self.base_lr else 1.0, index)


@dataclass(frozen=True)
class SquareRootScheduler(Schedule):
    """Inverse square root: base_lr · (t + 1)^(−1/2).

    As in Dive into Deep Learning, section 12.11; the rate of the classical bounds for stochastic gradient descent
    (Nemirovski et al. 2009, "Robust stochastic approximation approach to stochastic programming").

    Raises:
        ConfigError: ``base_lr`` is negative or not finite.

    >>> s = SquareRootScheduler(0.6)
    >>> s(0), s(3), s(8)
    (0.6, 0.3, 0.19999999999999998)
    """

    base_lr: float

    def __post_init__(self) -> None:
        check(self, rates=["base_lr"])

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        return self.base_lr / xp.sqrt(t + 1)
