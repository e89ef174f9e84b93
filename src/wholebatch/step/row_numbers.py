"""One number for each row of a tensor, by which a probe tells whose row it is."""

from __future__ import annotations

import torch
from torch import Tensor

# What a row comes to with other samples beside it is the same up to this part of its norm.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_ROUNDING_OF_HALF = 1e-2


def row_numbers(x: Tensor, axis: int = 0) -> tuple[Tensor, float]:
    """Return, in float64, a weighted sum of every row's entries, and by how much all of them together may be off.

    Rows that differ have other numbers, and rounding must not decide which rows those are.

    Args:
        x: a tensor.
        axis: that of its rows.

    >>> numbers, off = row_numbers(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    >>> bool((numbers[0] - numbers[1]).abs() > off)
    True
    """
    rows = x.detach().double().movedim(axis, 0).flatten(1)
    weights = torch.arange(1.0, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device).sin()
    off = _ROUNDING.get(x.dtype, _ROUNDING_OF_HALF) * float(rows.norm(dim=1).sum())
    return rows @ weights, off
