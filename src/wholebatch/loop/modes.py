"""Which mode each layer is in: borrowed for training or evaluation, and given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_given_back(model: nn.Module) -> Iterator[None]:
    """Put every layer back, in the end, into the mode that it has now; also after an error."""
    modes = [(layer, layer.training) for layer in model.modules()]
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def begin_training(model: nn.Module) -> None:
    """Put ``model`` into training mode; one that is in it keeps the layers that are not (a frozen batch norm)."""
    if not model.training:
        model.train()
