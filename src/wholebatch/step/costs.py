"""Micro-batches by size instead of count: contiguous cuts of a batch whose samples cost differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.cuts import bounds
from wholebatch.core.errors import BatchError, ConfigError

Cost = Callable[[Any], Tensor | Sequence[float]]


def bounds_by_cost(costs: Sequence[float], budget: float, align: int = 1) -> list[tuple[int, int]]:
    """Return the (start, stop) of every micro-batch: as many samples as cost ``budget`` together, at least one.

    >>> bounds_by_cost([3, 4, 2, 9, 1, 1], 8)
    [(0, 2), (2, 3), (3, 4), (4, 6)]

    With ``align`` they are cut at its multiples (:func:`wholebatch.core.cuts.bounds`).

    >>> bounds_by_cost([3, 4, 2, 9, 1, 1, 1], 8, align=2)
    [(0, 2), (2, 4), (4, 7)]
    """
    cuts, start, spent = [], 0, 0.0
    groups = bounds(len(costs), align, avoid_single=False, align=align)
    for place, stop in groups:
        cost = sum(costs[place:stop])
        if place > start and spent + cost > budget:
            cuts.append((start, place))
            start, spent = place, 0.0
        spent += cost
    return [*cuts, (start, len(costs))] if len(costs) else []


def costs_of(batch: Any, samples: int, cost: Cost | None, ignore_index: int | None) -> list[float]:
    """Return what each sample costs: what ``cost(batch)`` says, else its tokens.

    The tokens of a sample are the ones of its row of ``attention_mask`` in a batch that is a mapping with one, else its
    targets other than ``ignore_index``, the last tensor of ``(inputs, *targets)``.

    Raises:
        ConfigError: there are no tokens to be seen.
        BatchError: ``cost`` gave something else than one finite number, 0 or more, for each sample.
    """
    found = _tokens(batch, ignore_index) if cost is None else cost(batch)
    numbers = torch.as_tensor(found)
    if numbers.shape != (samples,) or not bool((torch.isfinite(numbers.double()) & (numbers >= 0)).all()):
        raise BatchError(
            f"the costs of a batch of {samples} samples have shape {tuple(numbers.shape)}: {numbers.tolist()!r:.60}; "
            "expected one finite number, 0 or more, for each sample"
        )
    return [float(number) for number in numbers.tolist()]


def _tokens(batch: Any, ignore_index: int | None) -> Tensor:
    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        marked = None if mask is None else torch.as_tensor(mask) != 0
        if marked is None and batch.get("labels") is not None:
            marked = torch.as_tensor(batch["labels"]) != (-100 if ignore_index is None else ignore_index)
    else:
        targets = batch[-1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        whole = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim > 1
        marked = targets != (-100 if ignore_index is None else ignore_index) if whole else None  # type: ignore[assignment]
    if marked is None or marked.ndim == 0:
        raise ConfigError(
            "micro_batch_tokens counts the tokens of an attention_mask, or of targets (samples, tokens); this batch "
            "has neither. Say what a sample costs: micro_batch_cost=lambda batch: (batch[0] != padding).sum(1)"
        )
    return marked.flatten(1).sum(1) if marked.ndim > 1 else marked.to(torch.int64)
