"""What a model costs: parameters, and the multiply-adds of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Numbers of parameters (also those that do not train) and of multiply-adds of one sample's forward."""

    parameters: int
    multiply_adds: int


def cost(model: nn.Module, shape: Sequence[int], dtype: torch.dtype | None = None) -> Cost:
    """Return what ``model`` costs for inputs of ``shape``, without the sample axis, and its weights' ``dtype``.

    Multiply-adds are those of convolutions, linear layers and attention (half of what torch's ``FlopCounterMode``
    counts); norms, activations and pooling are left out, as is usual. The model is run once on zeros, in evaluation
    mode; on the meta device that computes nothing.

    >>> cost(nn.Linear(3, 5), (3,))
    Cost(parameters=20, multiply_adds=15)
    """
    like = next(iter(model.parameters()), torch.empty(0))
    training = [layer for layer in model.modules() if layer.training]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model.eval()(torch.zeros(1, *shape, dtype=dtype or like.dtype, device=like.device))
    finally:
        for layer in training:
            layer.training = True
    return Cost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2)
