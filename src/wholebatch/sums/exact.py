"""A sum of single numbers that has the same bits in every order, for any number of them."""

from __future__ import annotations

import math
from fractions import Fraction


class ExactSum:
    """The sum of float64 numbers, exactly: every one of them is a fraction of whole numbers. Rounded when read.

    >>> total = ExactSum()
    >>> for value in (1e16, 1.0, -1e16):
    ...     total.add(value)
    >>> total.value
    1.0
    """

    def __init__(self) -> None:
        self._finite = Fraction(0)
        self._strange = 0.0  # the sum of NaN and infinities

    def add(self, value: float) -> None:
        """Add a number."""
        if math.isfinite(value):
            self._finite += Fraction(value)
        else:
            self._strange += value

    def merge(self, other: ExactSum) -> None:
        """Add what was added to ``other``."""
        self._finite += other._finite
        self._strange += other._strange

    @property
    def value(self) -> float:
        """The sum, rounded once; NaN or infinity where there was one."""
        if self._strange:
            return self._strange
        try:
            return float(self._finite)
        except OverflowError:
            return math.copysign(math.inf, self._finite)
