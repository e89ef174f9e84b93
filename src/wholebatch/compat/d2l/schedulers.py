"""The schedulers of the book's section on learning rates, with its argument names and order."""

from __future__ import annotations

from typing import Any

from wholebatch import schedule
from wholebatch.schedule import CosineScheduler, MultiFactorScheduler

__all__ = ["CosineScheduler", "FactorScheduler", "MultiFactorScheduler", "SquareRootScheduler"]


class FactorScheduler:
    """Every call multiplies the rate: base_lr ← max(stop_factor_lr, base_lr · factor), which it returns.

    As in the book the first call gives base_lr · factor and ``num_update`` is not looked at, so that asking twice
    decays twice; :class:`wholebatch.FactorScheduler` is a function of progress instead.

    >>> scheduler = FactorScheduler(factor=0.5, stop_factor_lr=0.3, base_lr=2.0)
    >>> [scheduler(t) for t in range(4)]
    [1.0, 0.5, 0.3, 0.3]
    """

    def __init__(self, factor: float = 1, stop_factor_lr: float = 1e-7, base_lr: float = 0.1) -> None:
        self.factor = factor
        self.stop_factor_lr = stop_factor_lr
        self.base_lr = base_lr

    def __call__(self, num_update: Any) -> float:
        """Decay once more and return the rate."""
        native = schedule.FactorScheduler(self.factor, self.base_lr, self.stop_factor_lr)
        self.base_lr = native(1)
        return self.base_lr


class SquareRootScheduler:
    """lr · (num_update + 1)^(−1/2): :class:`wholebatch.SquareRootScheduler` under the book's argument name.

    >>> SquareRootScheduler(lr=0.1)(3)
    0.05
    """

    def __init__(self, lr: float = 0.1) -> None:
        self.lr = lr

    def __call__(self, num_update: Any) -> Any:
        """Return the rate at ``num_update``, a number, array or tensor."""
        return schedule.SquareRootScheduler(self.lr)(num_update)
