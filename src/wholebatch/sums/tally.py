"""Counting classified samples: how rows of (true class, predicted class) become counts on the device.

Everything is one flat int64 vector, filled by one ``scatter_add_``. With C classes a true class is coded as

    −1 below the range · 0 … C−1 · C above the range · C+1 ignored

and a predicted class as

    0 … C−1 · C a row with NaN · C+1 outside the range

so that wrong input has its own places and nobody has to look at it before the counts are read. The vector
begins with the table of (true, predicted), (C+3)·(C+2) places; above ``MOST_CLASSES`` three vectors stand
for it: true classes (C+3), predicted classes (C+3, the last for rows that do not count), correct answers
(C+1, likewise). After it, where ranks are counted, comes their histogram (K+1, the last for K and beyond).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CLASSES = 4096  # a table of this many classes takes 134 MB


@dataclass(frozen=True)
class Counts:
    """Counts as read, on the CPU."""

    below: int  # targets below 0
    above: int  # targets at or above the number of classes
    strange: int  # predicted labels outside the range
    nans: int  # rows with NaN among their logits
    true: Tensor  # int64 (C,): samples of each class
    correct: Tensor  # int64 (C,): how many of them were recognised
    confusion: Tensor | None  # int64 (C, C), [true, predicted]
    ranks: list[int]  # how often the true class was the r-th likeliest, r from 0


@dataclass(frozen=True)
class Tally:
    """The places of the counts for ``classes`` classes and ranks below ``ranks`` (0: none are counted)."""

    classes: int
    ranks: int = 0

    @property
    def has_table(self) -> bool:
        """Whether pairs of classes are counted."""
        return self.classes <= MOST_CLASSES

    @property
    def size(self) -> int:
        """The number of places."""
        return self._table_size + (self.ranks + 1 if self.ranks else 0)

    @property
    def _table_size(self) -> int:
        classes = self.classes
        return (classes + 3) * (classes + 2) if self.has_table else 3 * classes + 7

    def add(self, counts: Tensor, true: Tensor, predicted: Tensor, rank: Tensor | None) -> None:
        """Count coded rows, int64 (n,), in place; ``rank`` (n,) is the true class's place among the logits."""
        places = [self._table_place(true, predicted)] if self.has_table else self._vector_places(true, predicted)
        if rank is not None:
            valid = self._valid(true) & (predicted < self.classes)
            rank = torch.where(valid, rank.clamp(max=self.ranks), self.ranks)
            places.append(rank.add_(self._table_size))
        place = torch.cat(places) if len(places) > 1 else places[0]
        counts.scatter_add_(0, place, torch.ones_like(place))

    def _valid(self, true: Tensor) -> Tensor:
        return (true >= 0) & (true < self.classes)

    def _table_place(self, true: Tensor, predicted: Tensor) -> Tensor:
        width = self.classes + 2
        return torch.add(predicted, true, alpha=width).add_(width)

    def _vector_places(self, true: Tensor, predicted: Tensor) -> list[Tensor]:
        classes = self.classes
        valid = self._valid(true)
        correct = torch.where(valid & (true == predicted), true, classes).add_(2 * classes + 6)
        predicted = torch.where(valid, predicted, classes + 2).add_(classes + 3)
        return [true + 1, predicted, correct]

    def read(self, counts: Tensor) -> Counts:
        """Fetch the counts from the device and name them."""
        classes = self.classes
        flat = counts.cpu()
        if self.has_table:
            table = flat[: self._table_size].view(classes + 3, classes + 2)
            rows, inner = table.sum(1), table[1 : classes + 1]
            columns = inner.sum(0)
            correct = inner.diagonal().clone()
            confusion = inner[:, :classes].clone()
        else:
            rows, columns = flat[: classes + 3], flat[classes + 3 : 2 * classes + 6]
            correct = flat[2 * classes + 6 : 3 * classes + 6].clone()
            confusion = None
        return Counts(
            below=int(rows[0]),
            above=int(rows[classes + 1]),
            strange=int(columns[classes + 1]),
            nans=int(columns[classes]),
            true=rows[1 : classes + 1].clone(),
            correct=correct,
            confusion=confusion,
            ranks=flat[self._table_size :].tolist()[: self.ranks],
        )


def target_rank(logits: Tensor, true: Tensor) -> Tensor:
    """Return the place of each true class among its row's logits, from 0; of equals the first class is first.

    ``logits`` is (n, C), ``true`` int64 (n,). Rows whose true class is out of range get a meaningless number.
    """
    classes = logits.shape[1]
    column = true.clamp(0, classes - 1).unsqueeze(1)
    own = logits.gather(1, column)
    before = torch.arange(classes, device=logits.device) < column
    return ((logits > own) | ((logits == own) & before)).sum(1)
