"""Accuracy and what else follows from counting pairs of true and predicted classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wholebatch.core.errors import DataError, InputError, InputTypeError
from wholebatch.sums.additive import Additive
from wholebatch.sums.rows import MOST_BATCHES, MOST_ROWS, Rows
from wholebatch.sums.shapes import bool_mask
from wholebatch.sums.tally import MOST_CLASSES, Counts, Tally, target_rank

# predicted class, largest logit, target, mask, rank of the target
_Pending = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


class Accuracy(Additive):
    """Counts of (true class, predicted class) over everything added; nothing is read until somebody reads.

    A row of logits predicts the class of its largest one, the first of equals. Targets equal to
    ``ignore_index`` and rows outside a mask do not count. A row with a NaN among its logits counts as
    answered wrong; ``nan_count`` says how many there were. A target or a predicted label outside
    0 … num_classes − 1 is found when something is read, which then raises.

    ``topk`` names further accuracies: the share of rows whose true class is among the k largest logits.
    Anything beyond ``(1,)`` needs logits and a comparison with every one of them.

    >>> accuracy = Accuracy(3)
    >>> accuracy.add(torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1]]), torch.tensor([1, 2]))
    >>> accuracy.add(torch.tensor([2, 0]), torch.tensor([2, 0]))  # labels
    >>> accuracy.value, accuracy.count
    (0.75, 4)
    >>> accuracy.confusion
    tensor([[1, 0, 0],
            [0, 1, 0],
            [1, 0, 1]])
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None, topk: Iterable[int] = (1,)) -> None:
        if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer):
            raise InputTypeError(f"num_classes is a whole number; got {type(num_classes).__name__} {num_classes!r:.60}")
        if num_classes < 1:
            raise InputError(f"num_classes is at least 1; got {num_classes}")
        self.num_classes = int(num_classes)
        self.ignore_index = ignore_index
        self._topk = (topk,) if isinstance(topk, int) else tuple(topk)
        for k in self._topk:
            if not 1 <= k <= num_classes:
                raise InputError(f"topk holds numbers from 1 to num_classes ({num_classes}); got {self._topk}")
        most = max(self._topk, default=1)
        self._tally = Tally(self.num_classes, most if most > 1 else 0)
        self._device: torch.device | None = None  # the first value's
        self._counts: Tensor | None = None
        self._buffer: Rows | None = None  # made when batches of one shape come
        self._shape: torch.Size | None = None
        self._forget_rows()

    def _forget_rows(self) -> None:
        self._pending: list[_Pending] = []
        self._rows = 0

    def add(self, logits_or_labels: Any, targets: Any, mask: Any = None) -> None:
        """Count predictions, without a host read; the caller may overwrite its tensors afterwards.

        ``logits_or_labels`` holds logits (any scores, the largest one wins), shape (n, C) or (n, C, …), or integer
        labels of the shape of ``targets``, (n,) or (n, …). ``mask``, of bools, of ``targets``' shape or its
        leading axes, is True for what counts. One sample may come without axis n.

        Raises:
            InputError: shapes that do not fit.
            InputTypeError: targets that are not integers, floating predictions of the targets' shape, a mask
                that is not of bools.
        """
        rows = self._buffer
        if (
            rows is not None
            and mask is None
            and type(logits_or_labels) is Tensor
            and type(targets) is Tensor
            and logits_or_labels.shape == rows.shape
            and targets.shape == rows.shape[:1]
            and targets.dtype is torch.int64
            and logits_or_labels.dtype is rows.dtype
            and logits_or_labels.device == rows.device == targets.device
        ):
            if rows.keep(logits_or_labels.detach() if logits_or_labels.requires_grad else logits_or_labels, targets):
                self._fold()
        else:
            self._add_any(logits_or_labels, targets, mask)

    def _add_any(self, predicted: Any, targets: Any, mask: Any) -> None:
        """Check and bring to the shapes (n, C) and (n,), then keep for counting."""
        predicted, targets = _as_tensor(predicted, "predicted"), _as_tensor(targets, "targets")
        if targets.dtype.is_floating_point or targets.is_complex():
            raise InputTypeError(
                f"targets are class numbers; got {targets.dtype} of shape {tuple(targets.shape)}. "
                "Give targets.long(), or targets.argmax(1) for one-hot rows"
            )
        device = self._place(predicted.device)
        predicted, targets = predicted.to(device), targets.to(device)
        if mask is not None:
            mask = bool_mask(mask, targets.shape, "targets", device).reshape(-1).clone()
        logits = predicted.ndim == targets.ndim + 1
        _check_shapes(predicted, targets, self.num_classes if logits else None)
        true = targets.to(torch.int64, copy=True).reshape(-1)
        rank = None
        if logits:
            scores = predicted.movedim(min(1, predicted.ndim - 1), -1).reshape(-1, self.num_classes)
            largest, label = scores.max(1)
            rank = target_rank(scores, true) if self._tally.ranks else None
        else:
            label = self._coded_labels(predicted)
            largest = torch.zeros(1, device=device).expand(label.shape)  # no NaN among labels
        self._pending.append((label, largest, true, mask, rank))
        self._rows += true.numel()
        if self._rows >= MOST_ROWS or len(self._pending) >= MOST_BATCHES:
            self._fold()
        if predicted.ndim == 2 and logits and mask is None and rank is None:
            if predicted.shape == self._shape:  # for the second time: likely more of this shape
                self._fold()
                self._buffer = Rows(predicted)
            self._shape = predicted.shape

    def _coded_labels(self, labels: Tensor) -> Tensor:
        """Predicted labels, those outside the range in their own code."""
        if self._tally.ranks:
            raise InputError(
                f"topk={self._topk} needs logits of shape (n, {self.num_classes}, …); got labels of shape "
                f"{tuple(labels.shape)}. Give logits, or make an Accuracy without topk"
            )
        labels = labels.to(torch.int64).reshape(-1)
        return torch.where((labels >= 0) & (labels < self.num_classes), labels, self.num_classes + 1)

    def _place(self, device: torch.device) -> torch.device:
        """The counts' device, which the first value decides; the counts, made or moved there."""
        if self._device is None:
            self._device = device
            with torch.inference_mode(False):  # born in inference mode, they could not be added to outside
                if self._counts is None:
                    self._counts = torch.zeros(self._tally.size, dtype=torch.int64, device=device)
                else:
                    self._counts = self._counts.to(device)
        return self._device

    def _fold(self) -> Tensor | None:
        """Count the rows kept so far; return the counts, None where there never was a row."""
        rows = self._buffer.take() if self._buffer else None
        if rows is not None:
            self._tally_rows(*rows, None, None)
        if self._pending:
            labels, largest, targets, masks, ranks = zip(*self._pending, strict=True)
            mask = None
            if any(part is not None for part in masks):
                mask = torch.cat(
                    [_ones(target) if part is None else part for part, target in zip(masks, targets, strict=True)]
                )
            rank = torch.cat(ranks) if self._tally.ranks else None
            self._tally_rows(torch.cat(labels), torch.cat(largest), torch.cat(targets), mask, rank)
            self._forget_rows()
        return self._counts

    def _tally_rows(
        self, label: Tensor, largest: Tensor, true: Tensor, mask: Tensor | None, rank: Tensor | None
    ) -> None:
        """Bring rows (n,) to the tally's codes, in place, and count them."""
        assert self._counts is not None
        label.masked_fill_(largest != largest, self.num_classes)  # NaN differs from itself
        ignored = None if self.ignore_index is None else true == self.ignore_index
        if mask is not None:
            ignored = ~mask if ignored is None else ignored | ~mask
        true.clamp_(-1, self.num_classes)
        if ignored is not None:
            true.masked_fill_(ignored, self.num_classes + 1)
        self._tally.add(self._counts, true, label, rank)

    def _read(self) -> Counts:
        """All counts, on the CPU, wrong labels or not."""
        counts = self._fold()
        return self._tally.read(torch.zeros(self._tally.size, dtype=torch.int64) if counts is None else counts)

    def _read_valid(self) -> Counts:
        """All counts.

        Raises:
            DataError: there were labels outside the range.
        """
        counts = self._read()
        wrong = counts.below + counts.above
        if wrong or counts.strange:
            seen = int(counts.true.sum())
            found = f"{wrong} of {wrong + seen} targets" if wrong else f"{counts.strange} of {seen} predicted labels"
            where = f" ({counts.below} below, {counts.above} above)" if wrong else ""
            raise DataError(
                f"{found} are outside 0 … {self.num_classes - 1}{where}, which num_classes={self.num_classes} allows; "
                "correct the labels or num_classes, or say ignore_index= or mask= for rows that should not count"
            )
        return counts

    @property
    def value(self) -> float:
        """The share of correct answers; NaN where nothing was counted."""
        counts = self._read_valid()
        return _share(int(counts.correct.sum()), int(counts.true.sum()))

    @property
    def count(self) -> int:
        """The number of rows counted, without ignored ones, with those that have a NaN."""
        return int(self._read_valid().true.sum())

    @property
    def nan_count(self) -> int:
        """How many of the counted rows had a NaN among their logits; each counts as a wrong answer."""
        return self._read().nans

    @property
    def per_class(self) -> Tensor:
        """The share of each class's samples that was recognised (recall), float64 (C,); NaN where it has none."""
        counts = self._read_valid()
        return counts.correct.double() / counts.true

    @property
    def per_class_count(self) -> Tensor:
        """The number of rows of each true class, int64 (C,), with those that have a NaN."""
        return self._read_valid().true

    @property
    def balanced(self) -> float:
        """The mean of ``per_class`` over the classes that have samples; NaN where none has."""
        return float(self.per_class.nanmean())

    @property
    def confusion(self) -> Tensor:
        """How often class i was taken for class j, ``confusion[i, j]``, int64 (C, C), on the CPU.

        A row with a NaN was taken for no class: it is counted, but in none of the columns.

        Raises:
            InputError: there are more than 4,096 classes; then pairs are not kept.
        """
        if not self._tally.has_table:
            raise InputError(
                f"a confusion matrix is kept up to {MOST_CLASSES} classes, and this has {self.num_classes}; "
                "value, per_class, balanced and topk are there"
            )
        confusion = self._read_valid().confusion
        assert confusion is not None
        return confusion

    @property
    def topk(self) -> dict[int, float]:
        """For every k asked for, the share of rows whose true class is among the k largest logits."""
        counts = self._read_valid()
        count = int(counts.true.sum())
        hits = {1: int(counts.correct.sum())}
        return {k: _share(hits[k] if k in hits else sum(counts.ranks[:k]), count) for k in self._topk}

    def reset(self) -> None:
        """Forget everything that was added; the counts are zeroed in place."""
        self._forget_rows()
        if self._buffer is not None:
            self._buffer.take()
        if self._counts is not None:
            self._counts.zero_()

    def _signature(self) -> dict[str, Any]:
        return {
            "kind": "Accuracy",
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "topk": list(self._topk),
        }

    def _blank(self) -> Accuracy:
        return Accuracy(self.num_classes, self.ignore_index, self._topk)

    def _merge(self, other: Accuracy) -> None:
        theirs = other._fold()
        if theirs is None:
            return
        if self._counts is None:
            with torch.inference_mode(False):
                self._counts, self._device = theirs.clone(), other._device
        else:
            self._fold()
            self._counts.add_(theirs.to(self._counts.device))

    def _pack(self) -> tuple[Tensor, Tensor]:
        counts = self._fold()
        ints = torch.zeros(self._tally.size, dtype=torch.int64) if counts is None else counts.clone()
        return torch.zeros(0, dtype=torch.float64, device=ints.device), ints

    def _unpack(self, floats: Tensor, ints: Tensor) -> None:
        self._forget_rows()
        self._buffer = None
        with torch.inference_mode(False):
            self._counts, self._device = ints.clone(), None

    def __getstate__(self) -> dict[str, Any]:
        self._fold()
        return {**self.__dict__, "_buffer": None}

    def __repr__(self) -> str:
        counts = self._read()
        count = int(counts.true.sum())
        parts = [
            f"{self.num_classes} classes",
            f"value={_share(int(counts.correct.sum()), count):.6g}",
            f"count={count}",
        ]
        if counts.nans:
            parts.append(f"nan_count={counts.nans}")
        if wrong := counts.below + counts.above + counts.strange:
            parts.append(f"out_of_range={wrong}")
        return f"Accuracy({', '.join(parts)})"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _ones(target: Tensor) -> Tensor:
    return torch.ones_like(target, dtype=torch.bool)


def _as_tensor(value: Any, name: str) -> Tensor:
    """A tensor, array or nested list of numbers, detached."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.as_tensor(np.array(value))
    except (TypeError, ValueError):
        raise InputTypeError(
            f"{name} is a tensor, array or list of numbers; got {type(value).__name__} {value!r:.60}"
        ) from None


def _check_shapes(predicted: Tensor, targets: Tensor, classes: int | None) -> None:
    """Refuse predictions that do not belong to the targets; ``classes`` is None for labels."""
    given = f"predicted has shape {tuple(predicted.shape)} ({predicted.dtype}), targets {tuple(targets.shape)}"
    if classes is not None:
        axis = min(1, predicted.ndim - 1)
        expected = (*targets.shape[:axis], classes, *targets.shape[axis:])
        if predicted.shape != expected:
            raise InputError(f"{given}; logits for these targets have shape {expected}, the classes on axis {axis}")
    elif predicted.shape != targets.shape:
        raise InputError(f"{given}; give logits (n, C, …) and targets (n, …), or labels of the targets' shape")
    elif predicted.dtype.is_floating_point or predicted.is_complex():
        raise InputTypeError(f"{given}; labels are integers: give (probability > 0.5).long(), or logits (n, C)")
