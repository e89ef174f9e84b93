"""Rows of equally shaped batches, kept in one buffer until they are worth counting.

The buffer and its views are made once; a batch is written into it by two operations that allocate nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ROWS = 8192  # counted at a time: a dozen operations for all of them instead of for each batch
MOST_BATCHES = 128  # of very small ones, so that the views stay few


class Rows:
    """A buffer for batches of the shape, type and device of ``logits`` (n, C); their targets are int64 (n,)."""

    def __init__(self, logits: Tensor) -> None:
        self.shape, self.dtype, self.device = logits.shape, logits.dtype, logits.device
        self._samples = max(logits.shape[0], 1)
        self._batches = max(1, min(MOST_BATCHES, MOST_ROWS // self._samples))
        size = self._batches * self._samples
        with torch.inference_mode(False):  # born in inference mode, they could not be written to outside
            self._largest = torch.zeros(size, dtype=self.dtype, device=self.device)
            self._label = torch.zeros(size, dtype=torch.int64, device=self.device)
            self._target = torch.zeros(size, dtype=torch.int64, device=self.device)
            self._places = list(
                zip(
                    zip(self._largest.split(self._samples), self._label.split(self._samples), strict=True),
                    self._target.split(self._samples),
                    strict=True,
                )
            )
        self._used = 0

    def keep(self, logits: Tensor, targets: Tensor) -> bool:
        """Keep a batch, copied, whose ``logits`` need no gradient; return whether the buffer is full."""
        place, target = self._places[self._used]
        torch.max(logits, 1, out=place)
        target.copy_(targets)
        self._used += 1
        return self._used == self._batches

    def take(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return and forget what is kept: labels, largest logits, targets (m,), valid until the next ``keep``."""
        rows = self._used * self._samples
        self._used = 0
        return (self._label[:rows], self._largest[:rows], self._target[:rows]) if rows else None
