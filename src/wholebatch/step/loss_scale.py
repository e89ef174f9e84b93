"""The scale of a loss in float16: small gradients would vanish there, and are made larger by a power of two.

A power of two changes no digit, so that the scale never changes a result but by what would have vanished or
overflowed. It is halved when a gradient overflows, which skips that step, and doubled after 2,000 steps without one
(Micikevicius et al. 2018; the numbers are those of ``torch.amp.GradScaler``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from wholebatch.core.errors import NonFiniteError
from wholebatch.step.report import StepReport

_GROWS_AFTER = 2000
_SMALLEST, _LARGEST = 2.0**-24, 2.0**40


class LossScale:
    """What the gradients of a mean are multiplied by; ``value`` is a power of two.

    >>> scale = LossScale()
    >>> scale.overflowed(), scale.value
    (True, 32768.0)
    """

    def __init__(self) -> None:
        self.value = 2.0**16
        self.good = 0

    def fitted(self) -> None:
        """A step was made; after many in a row the scale is doubled."""
        self.good += 1
        if self.good >= _GROWS_AFTER:
            self.value, self.good = min(2 * self.value, _LARGEST), 0

    def overflowed(self) -> bool:
        """A gradient was not finite: halve the scale; return False where it is so small that this is not the cause."""
        if self.value <= _SMALLEST:
            return False
        self.value, self.good = self.value / 2, 0
        return True

    def follow(self, report: StepReport, nonfinite: str, blame: Callable[[], str]) -> None:
        """Fit the scale to what a step came to; what no scale can help is treated as anywhere.

        Args:
            report: of the step, which was skipped where a gradient was not finite.
            nonfinite: what a NaN or infinity does.
            blame: what is said of it.

        Raises:
            NonFiniteError: a gradient is not finite whatever the scale, and ``nonfinite`` is "raise".
        """
        if not report.skipped:
            self.fitted()
            return
        helped = not report.weight or (math.isfinite(float(report.loss_sum)) and self.overflowed())
        if not helped and nonfinite == "raise":
            raise NonFiniteError(blame())

    def state_dict(self) -> dict[str, Any]:
        """Return the scale, and the steps since it changed."""
        return {"value": self.value, "good": self.good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the scale of ``state``."""
        self.value, self.good = float(state["value"]), int(state["good"])
