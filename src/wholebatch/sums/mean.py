"""A weighted mean: the pair (sum of w·x, sum of w), divided only when it is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wholebatch.sums.additive import AdditiveTotals
from wholebatch.sums.shapes import bool_mask, per_element
from wholebatch.sums.total import Number, Total, plain


class Mean(AdditiveTotals):
    """The weighted mean of everything added: sum of w·x over sum of w, both exact sums.

    >>> mean = Mean()
    >>> mean.add(torch.tensor([1.0, 3.0]))
    >>> mean.add(torch.tensor(6.0), weight=2)
    >>> mean.value, mean.weight
    (4.0, 4)
    >>> mean.add(torch.tensor([float("nan"), 4.0]), mask=torch.tensor([False, True]))
    >>> mean
    Mean(value=4.0, weight=5)
    """

    def __init__(self) -> None:
        self._sum = Total()
        self._weight = Total()
        self._totals = [self._sum, self._weight]

    def add(self, value: Any, weight: Any = 1, mask: Tensor | None = None) -> None:
        """Add every element of ``value``, a number, tensor or array of any shape, without a host read.

        ``weight`` is what each element weighs: a number or 0-dim tensor for all of them, or a tensor of
        ``value``'s shape or of its leading axes (one weight per sample). ``mask``, of bools, of ``value``'s
        shape or of its leading axes, says which elements count; the others, and those of weight 0, are
        left out whatever they are, NaN included.

        Raises:
            InputError: a weight or a mask of another shape.
            InputTypeError: a value or a weight that is not real, or a mask that is not of bools.
        """
        if mask is None and type(weight) is int and weight == 1:
            self._sum.add(value)
            self._weight.add(_elements(value))
        elif mask is None and not isinstance(weight, Tensor | np.ndarray):
            self._add_scaled(value, plain(weight))
        else:
            self._add_weighted(value, weight, mask)

    def _add_scaled(self, value: Any, weight: Number | Tensor) -> None:
        """Add elements that weigh the same, a number known to the host."""
        count, total = _elements(value), plain(value)
        if not weight:
            return
        if isinstance(total, Tensor):
            total = total.detach().to(torch.float64)
        self._sum.add(total * weight)
        self._weight.add(count * weight)

    def _add_weighted(self, value: Any, weight: Any, mask: Tensor | None) -> None:
        """Add elements of which the device knows what they weigh or whether they count."""
        device = next((part.device for part in (value, weight, mask) if isinstance(part, Tensor)), None)
        value = _tensor(value, device)
        weight = per_element(_tensor(weight, value.device), value.shape, "weight", "value")
        counts = weight != 0
        if mask is not None:
            counts = counts & bool_mask(mask, value.shape, "value", value.device)
        # torch.where, not a product with the mask: NaN times 0 is NaN
        self._sum.add(torch.where(counts, value.to(torch.float64) * weight, 0.0))
        self._weight.add(torch.where(counts, weight, 0))

    @property
    def value(self) -> float:
        """The mean; NaN where the weight is 0. The host waits for the device."""
        weight = self._weight.read()
        return self._sum.read() / weight if weight else math.nan

    @property
    def weight(self) -> Number:
        """The sum of the weights: the number of elements where no weight was given."""
        return self._weight.read()

    def _signature(self) -> dict[str, Any]:
        return {"kind": "Mean"}

    def _blank(self) -> Mean:
        return Mean()

    def __repr__(self) -> str:
        return f"Mean(value={self.value!r}, weight={self.weight!r})"


def _elements(value: Any) -> int:
    """How many elements a value has."""
    if isinstance(value, Tensor):
        return value.numel()
    return value.size if isinstance(value, np.ndarray) else 1


def _tensor(value: Any, device: torch.device | None) -> Tensor:
    """A number, array or tensor as a detached tensor on ``device``; what is floating is float64."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(value.astype(np.float64 if value.dtype.kind == "f" else np.int64))
    value = plain(value)
    if not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
    value = value.detach().to(device)
    return value.to(torch.float64) if value.dtype.is_floating_point else value
