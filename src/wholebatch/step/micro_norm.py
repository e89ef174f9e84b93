"""Running statistics of batch and instance norm in bitwise mode: those of each micro-batch, merged once per step.

While a window runs, a layer's momentum is 1, so that after each call its buffers hold the statistics of that call
alone; they are read, and put back at the window's end. What a micro-batch gives for a layer is the sum, over the
layer's calls, of its samples times the statistics; these are added order-free with the gradients, divided once by the
samples that were counted, and move the buffers once, by the layer's own momentum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_Norm = nn.modules.batchnorm._NormBase


class MicroNorms:
    """The layers of a model that keep running statistics; a context manager around a window."""

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, _Norm)]
        self.layers = [layer for layer in layers if layer.running_mean is not None and layer.running_var is not None]
        self._samples = 0
        self._counts = False
        self._of_micro_batch: dict[nn.Module, list[Tensor]] = {}
        self._calls: dict[nn.Module, int] = {}
        self._weights = [0] * len(self.layers)
        self._begun: list[tuple[nn.Module, Any, list[Tensor]]] = []
        self._hooks: list[Any] = []

    @property
    def statistics(self) -> list[Tensor]:
        """What has a sum: mean and variance of each layer."""
        return [buffer for layer in self.layers for buffer in (layer.running_mean, layer.running_var)]  # type: ignore[misc]

    @property
    def weights(self) -> list[int]:
        """How many samples each layer has counted in this window, on this process, those of every call."""
        return list(self._weights)

    def __enter__(self) -> MicroNorms:
        self._weights = [0] * len(self.layers)
        self._begun = []
        for layer in self.layers:
            if not layer.training:
                continue
            buffers = [layer.running_mean, layer.running_var, layer.num_batches_tracked]
            self._begun.append((layer, layer.momentum, [b.clone() for b in buffers if b is not None]))
            layer.momentum = 1.0
            self._hooks.append(layer.register_forward_hook(self._called))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        with torch.no_grad():
            for layer, momentum, values in self._begun:
                layer.momentum = momentum
                for buffer, value in zip(_buffers(layer), values, strict=True):
                    buffer.copy_(value)

    @contextmanager
    def micro_batch(self, samples: int) -> Iterator[None]:
        """Within the block a micro-batch runs forward; outside of it layers are run again, and do not count."""
        self._samples, self._counts = samples, True
        self._of_micro_batch, self._calls = {}, {}
        try:
            yield
        finally:
            self._counts = False

    def _called(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        if not self._counts:
            return
        with torch.no_grad():
            found = [buffer.to(torch.float64) * self._samples for buffer in _buffers(layer)[:2]]
            before = self._of_micro_batch.get(layer)
            self._of_micro_batch[layer] = (
                found if before is None else [a + b for a, b in zip(before, found, strict=True)]
            )
        self._calls[layer] = self._calls.get(layer, 0) + 1

    def summand(self) -> list[Tensor | None]:
        """Count the last micro-batch: samples times mean and variance of each layer, None where it was not run."""
        for number, layer in enumerate(self.layers):
            self._weights[number] += self._samples * self._calls.get(layer, 0)
        nothing: list[Any] = [None, None]
        return [part for layer in self.layers for part in self._of_micro_batch.get(layer, nothing)]

    def move(self, sums: Sequence[Tensor], weights: Sequence[float]) -> None:
        """Move the running statistics, once, given ``sums`` and ``weights`` over all micro-batches."""
        with torch.no_grad():
            for number, (layer, weight) in enumerate(zip(self.layers, weights, strict=True)):
                if not weight:
                    continue
                if layer.num_batches_tracked is not None and not isinstance(
                    layer, nn.modules.instancenorm._InstanceNorm
                ):
                    layer.num_batches_tracked.add_(1)
                momentum = layer.momentum
                if momentum is None:  # the mean of all steps
                    momentum = 1.0 / float(layer.num_batches_tracked or 1)
                for buffer, total in zip(_buffers(layer)[:2], sums[2 * number : 2 * number + 2], strict=True):
                    moved = buffer.to(torch.float64).mul_(1.0 - momentum).add_(total.div(weight).mul_(momentum))
                    buffer.copy_(moved)


def _buffers(layer: Any) -> list[Tensor]:
    found = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    return [buffer for buffer in found if buffer is not None]
