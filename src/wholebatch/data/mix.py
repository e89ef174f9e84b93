"""MixUp and CutMix over the whole batch, with exact soft targets.

A sample's partner stands anywhere in the whole batch: in another micro-batch, on another process. So partners, shares
and boxes are drawn for the whole batch, from (seed, epoch, the batch's place in the epoch), and a
:class:`~wholebatch.data.BatchLoader` loads a micro-batch together with its partners, whoever else has them, too. Both
images are augmented as their own samples, and mixed last. The result is that of the whole batch in one piece, bit by
bit. The price: up to two images are loaded per sample; one, where the whole batch is one micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wholebatch.core import keys
from wholebatch.core.errors import DataError
from wholebatch.data.keyed import check_images, column
from wholebatch.data.transform import change_field

_NUMBER = 6  # of these draws among the transforms'
_FINE = 1 << 24  # shares are whole multiples of 1 / this, so that share and 1 - share add to exactly 1 in float32


@dataclass(frozen=True)
class Plan:
    """How the samples of a whole batch, or of a part of it, are mixed; one row per sample, on the host.

    Attributes:
        partners: the partners' numbers in the data set, int64.
        shares: what is left of the sample itself, float64 in [0, 1]; of CutMix it is not yet the covered pixels'.
        boxes: where the middle of CutMix's box is, as shares of height and width, float64, (samples, 2).
        cut: whether it is CutMix, bool.
    """

    partners: Tensor
    shares: Tensor
    boxes: Tensor
    cut: Tensor

    def part(self, start: int, stop: int) -> Plan:
        """Return the plan of the samples ``start … stop``."""
        return Plan(self.partners[start:stop], self.shares[start:stop], self.boxes[start:stop], self.cut[start:stop])

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers of all samples that ``indices`` and their partners are, each once, and where each is."""
        rows, where = torch.unique(torch.cat([indices, self.partners]), return_inverse=True)
        return rows, where


class Mix:
    """Mix every sample with another one of its whole batch: MixUp, CutMix, or one of them at random.

    MixUp (H. Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017) is share · image + (1 - share) · partner;
    CutMix (S. Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers, 2019) covers a box of the
    image by the partner's pixels there, its share being that of the pixels left. The share is drawn for every sample
    from Beta(alpha, alpha). Targets become probabilities, share · target + (1 - share) · partner's target, which
    ``CrossEntropyLoss`` takes; they add to exactly 1. Give it to a loader: ``BatchLoader(..., mix=MixUp(10))``.

    Args:
        num_classes: of the targets that are class numbers; targets that are probabilities are mixed as they are.
        mixup: alpha of MixUp, 0 for none.
        cutmix: alpha of CutMix, 0 for none. Where both are there, every sample has one of them, each as likely.
        field, target: places or keys of images and targets in the batch.

    Raises:
        DataError: an alpha that is negative or not finite, or both are 0; fewer than 2 classes.
    """

    def __init__(
        self, num_classes: int, mixup: float = 0.0, cutmix: float = 0.0, field: Any = 0, target: Any = 1
    ) -> None:
        for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise DataError(f"the alpha of {name} must be finite and not negative, got {alpha}")
        if not (mixup or cutmix):
            raise DataError("Mix needs the alpha of mixup or of cutmix, above 0")
        if num_classes < 2:
            raise DataError(f"mixed targets are probabilities of at least 2 classes, got num_classes={num_classes}")
        self.num_classes, self.mixup, self.cutmix = num_classes, mixup, cutmix
        self.field, self.target = field, target

    def plan(self, indices: Tensor, *, seed: int, epoch: int, place: int) -> Plan:
        """Return how a whole batch is mixed.

        Args:
            indices: its samples' numbers in the data set, in order, on the host.
            seed, epoch: of the loader.
            place: how many samples of the epoch come before it.
        """
        samples = len(indices)
        draw = np.random.default_rng(keys.key(seed, "augment", epoch, _NUMBER, place))
        partners = indices[torch.from_numpy(draw.permutation(samples))]
        cut = draw.random(samples) < (0.5 if self.mixup else 1.0 if self.cutmix else 0.0)
        cut &= bool(self.cutmix)
        shares = np.where(cut, _beta(draw, self.cutmix, samples), _beta(draw, self.mixup, samples))
        boxes = torch.from_numpy(draw.random((samples, 2)))
        return Plan(partners, torch.from_numpy(shares), boxes, torch.from_numpy(cut))

    def gathering(
        self,
        indices: Tensor,
        plan: Plan,
        take: Callable[[Tensor, int, int], Any],
        finish: Callable[[Any, Tensor], Any] | None = None,
    ) -> Callable[[int, int], Any]:
        """Return what gives the samples ``start … stop`` of a part of a whole batch, mixed.

        Args:
            indices: the part's samples.
            plan: of this part.
            take: ``take(rows, start, stop)`` gives the samples ``rows``, which these are made of.
            finish: moves them to their device and transforms them.
        """

        def gather(start: int, stop: int) -> Any:
            part, samples = plan.part(start, stop), stop - start
            rows, where = part.rows(indices[start:stop])
            batch = take(rows, start, stop)
            batch = batch if finish is None else finish(batch, rows)
            own, partners = (_rows(batch, places, len(rows)) for places in (where[:samples], where[samples:]))
            return self.apply(own, partners, part)

        return gather

    def apply(self, batch: Any, other: Any, plan: Plan) -> Any:
        """Return ``batch`` mixed with ``other``, whose samples are the partners."""
        images, targets = _part(batch, self.field), _part(batch, self.target)
        check_images(images, "Mix")
        boxes, shares = self._boxes(plan, images.shape[2], images.shape[3])
        shares = (shares * _FINE).round() / _FINE
        mixed = self._images(images, _part(other, self.field), boxes, shares, plan.cut)
        soft = self._targets(targets, _part(other, self.target), shares, mixed.dtype)
        return change_field(change_field(batch, self.field, lambda _: mixed), self.target, lambda _: soft)

    def _boxes(self, plan: Plan, height: int, width: int) -> tuple[Tensor, Tensor]:
        """CutMix's boxes (top, bottom, left, right; int64, (N, 4)) and every sample's share of what it becomes."""
        side = (1 - plan.shares).sqrt()
        edges = []
        for middle, pixels in ((plan.boxes[:, 0], height), (plan.boxes[:, 1], width)):
            length, centre = (side * pixels).long(), (middle * pixels).long()
            start = centre - length // 2
            edges += [start.clamp(0, pixels), (start + length).clamp(0, pixels)]
        top, bottom, left, right = edges
        left_over = 1 - (bottom - top) * (right - left) / torch.tensor(height * width, dtype=torch.float64)
        return torch.stack(edges, 1), torch.where(plan.cut, left_over, plan.shares)

    def _images(self, images: Tensor, others: Tensor, boxes: Tensor, shares: Tensor, cut: Tensor) -> Tensor:
        new = images if images.is_floating_point() else images.float()
        others = others.to(new.dtype)
        blended = new
        if self.mixup:
            share = column(torch.where(cut, 1.0, shares).to(new.dtype), new)
            blended = new * share + others * (1 - share)
        if not self.cutmix:
            return blended
        boxes = torch.where(cut.unsqueeze(1), boxes, 0).to(new.device, non_blocking=True)
        y = torch.arange(new.shape[2], device=new.device)
        x = torch.arange(new.shape[3], device=new.device)
        tall = (y >= boxes[:, 0:1]) & (y < boxes[:, 1:2])
        wide = (x >= boxes[:, 2:3]) & (x < boxes[:, 3:4])
        return torch.where((tall[:, :, None] & wide[:, None, :]).unsqueeze(1), others, blended)

    def _targets(self, targets: Tensor, others: Tensor, shares: Tensor, dtype: torch.dtype) -> Tensor:
        """Probabilities of the classes, (N, classes)."""
        first, second = self._soft(targets, dtype), self._soft(others, dtype)
        share = shares.to(dtype).to(first.device, non_blocking=True).view(-1, *[1] * (first.ndim - 1))
        return first * share + second * (1 - share)

    def _soft(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        if targets.is_floating_point():
            return targets.to(dtype)
        if targets.ndim != 1:
            raise DataError(f"Mix takes a class number per sample, or probabilities; got {tuple(targets.shape)}")
        try:
            return F.one_hot(targets.long(), self.num_classes).to(dtype)
        except RuntimeError as error:
            raise DataError(
                f"Mix takes class numbers from 0 to {self.num_classes - 1}, got {int(targets.min())} to "
                f"{int(targets.max())}; an ignored target has no probabilities"
            ) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_classes={self.num_classes}, mixup={self.mixup}, cutmix={self.cutmix})"


class MixUp(Mix):
    """:class:`Mix` with MixUp alone.

    >>> mix = MixUp(3, alpha=0.4)
    >>> from wholebatch.data import BatchLoader
    >>> data = torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> images, targets = next(iter(BatchLoader(data, 6, mix=mix)))
    >>> targets.shape, targets.sum(1).tolist()
    (torch.Size([6, 3]), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """

    def __init__(self, num_classes: int, alpha: float = 0.2, field: Any = 0, target: Any = 1) -> None:
        super().__init__(num_classes, mixup=alpha, field=field, target=target)


class CutMix(Mix):
    """:class:`Mix` with CutMix alone."""

    def __init__(self, num_classes: int, alpha: float = 1.0, field: Any = 0, target: Any = 1) -> None:
        super().__init__(num_classes, cutmix=alpha, field=field, target=target)


def _beta(draw: np.random.Generator, alpha: float, samples: int) -> Any:
    return draw.beta(alpha, alpha, samples) if alpha else np.ones(samples)


def _rows(batch: Any, places: Tensor, count: int) -> Any:
    """The samples at ``places`` of a batch of ``count``: rows of tensors, items of lists; what else there is, whole."""
    if isinstance(batch, Tensor):
        return batch.index_select(0, places.to(batch.device)) if batch.ndim and len(batch) == count else batch
    if isinstance(batch, Mapping):
        return {name: _rows(part, places, count) for name, part in batch.items()}
    if not isinstance(batch, list | tuple):
        return batch
    if len(batch) == count and not any(isinstance(part, Tensor | Mapping | list | tuple) for part in batch):
        return type(batch)([batch[place] for place in places.tolist()])
    return type(batch)([_rows(part, places, count) for part in batch])


def _part(batch: Any, field: Any) -> Any:
    """The tensor at ``field``, as :func:`change_field` finds it."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    if isinstance(batch, Tensor):
        raise DataError("Mix mixes images and targets; the batch is one tensor")
    change_field(batch, field, keep)
    return found[0]
