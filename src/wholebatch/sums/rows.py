"""Rows of equally shaped batches, kept in one buffer until they are worth counting.

The buffer and its views are made once; a batch is written into it by two operations that allocate nothing. Rows of
few classes are copied as they are, and their largest logits found for all of them at once; of longer rows only the
largest logit is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_ROWS = 8192  # counted at a time: a dozen operations for all of them instead of for each batch
MOST_BATCHES = 128  # of very small ones, so that the views stay few
FEW_CLASSES = 32  # up to so many, copying a row costs less than finding its largest


class Rows:
    """A buffer for batches of the shape, type and device of ``logits`` (n, C); their targets are int64 (n,)."""

    def __init__(self, logits: Tensor) -> None:
        self.shape, self.dtype, self.device = logits.shape, logits.dtype, logits.device
        self._samples = max(logits.shape[0], 1)
        self._batches = max(1, min(MOST_BATCHES, MOST_ROWS // self._samples))
        size = self._batches * self._samples
        with torch.inference_mode(False):  # born in inference mode, they could not be written to outside
            few = logits.shape[1] <= FEW_CLASSES
            self._logits = torch.zeros(size if few else 0, logits.shape[1], dtype=self.dtype, device=self.device)
            self._largest = torch.zeros(size, dtype=self.dtype, device=self.device)
            self._label = torch.zeros(size, dtype=torch.int64, device=self.device)
            self._target = torch.zeros(size, dtype=torch.int64, device=self.device)
            self._copies = self._logits.split(self._samples) if few else None
            self._maxima = tuple(zip(self._largest.split(self._samples), self._label.split(self._samples), strict=True))
            self._targets = self._target.split(self._samples)
        self._used = 0

    def keep(self, logits: Tensor, targets: Tensor) -> bool:
        """Keep a batch, copied, whose ``logits`` need no gradient; return whether the buffer is full."""
        if self._copies is not None:
            self._copies[self._used].copy_(logits)
        else:
            torch.max(logits, 1, out=self._maxima[self._used])
        self._targets[self._used].copy_(targets)
        self._used += 1
        return self._used == self._batches

    def take(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return and forget what is kept: labels, largest logits, targets (m,), valid until the next ``keep``."""
        rows = self._used * self._samples
        self._used = 0
        if not rows:
            return None
        label, largest = self._label[:rows], self._largest[:rows]
        if self._copies is not None:
            torch.max(self._logits[:rows], 1, out=(largest, label))
        return label, largest, self._target[:rows]
