"""Gradients of logical workers that travel in 16 bits.

Each worker's sum of gradients is rounded to bfloat16 or float16; they are added in the gradients' own dtype, in the
workers' order, and the sum is rounded once more for its way back. What is divided, clipped and applied is
that sum. As many processes as workers send half of what a float32 all-reduce sends.

Float16 has 11 bits and little range. So each worker's gradient is scaled by a power of two that brings its largest
element just below 2^15, and the sum by one that no sum can overflow; the exponents travel first, 8 bytes a worker. What
is below about 2^-39 of the largest element is lost. Bfloat16 has 8 bits and float32's range, and needs no scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.processes import Processes
from wholebatch.parallel.per_worker import WorkersEngine
from wholebatch.parallel.wire import from_owners, to_owners

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST = -100  # the exponent of no gradient, and the least there is
_TOP = 14  # the largest element is below 2^(_TOP + 1); float16 ends at 65504


class HalfEngine(WorkersEngine):
    """Sums gradients that travel as ``kind``: "bf16" or "fp16"."""

    def __init__(self, processes: Processes, workers: int, kind: str) -> None:
        super().__init__(processes, workers)
        self._kind, self._half, self._scaled = kind, DTYPES[kind], kind == "fp16"
        self._exponents: dict[int, int] = {}

    @property
    def mode(self) -> str:
        """In words, for the history."""
        return f"{self.workers} workers, gradients in {self._kind}"

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; nothing is kept of the one before."""
        super().begin(parameters, model)
        self._exponents = dict.fromkeys(self.own, _LEAST)

    def keep(self, worker: int, gradients: list[Tensor | None]) -> list[Any]:
        """Return the gradients rounded to 16 bits, scaled where they need it."""
        found = [gradient for gradient in gradients if gradient is not None]
        exponent = _exponent(found) if self._scaled else 0
        self._exponents[worker] = exponent
        factor = 2.0**-exponent
        return [None if g is None else (g * factor if exponent else g).to(self._half) for g in gradients]

    def combine(self, present: list[int], weight: float) -> None:
        """Add what travels in 16 bits, in the workers' order."""
        exponents, common = self._all_exponents() if self._scaled else ([0] * self.workers, 0)
        for numbers in self.groups(present):
            rows = self.rows(numbers, self.kept, self._half)
            wide = self.dtype(numbers[0])
            total: Tensor | None = None
            for row, exponent in zip(to_owners(self.processes, rows, self.workers), exponents, strict=True):
                value = row.to(wide) * 2.0 ** (exponent - common)
                total = value if total is None else total.add_(value)
            assert total is not None
            whole = from_owners(self.processes, total.to(self._half), rows.shape[1])
            self.spread(numbers, whole.to(wide) * 2.0**common)

    def _all_exponents(self) -> tuple[list[int], int]:
        """Every worker's exponent, and one that the sum of all fits with."""
        own = torch.zeros(self.workers, dtype=torch.float64)
        for worker, exponent in self._exponents.items():
            own[worker] = exponent
        everyones = [int(value) for value in self.processes.sum_(own).tolist()]
        return everyones, max(everyones) + math.ceil(math.log2(self.workers))


def _exponent(gradients: list[Tensor]) -> int:
    """The power of two to divide by, so that the largest element is in [2^_TOP, 2^(_TOP + 1)); 0 where none helps."""
    largest = max([float(gradient.abs().max()) for gradient in gradients if gradient.numel()], default=0.0)
    if largest == 0:
        return _LEAST
    return max(_LEAST, math.frexp(largest)[1] - 1 - _TOP) if math.isfinite(largest) else 0
