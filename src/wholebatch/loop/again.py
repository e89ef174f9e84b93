"""The promise on one's own machine: the last step redone with another micro-batch."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from wholebatch.core.errors import PromiseWarning
from wholebatch.data import BatchLoader
from wholebatch.step import MicroBatches, Step


class LastStep:
    """Keeps the weights as they are before update number ``updates``, to make that step once more.

    Made before training; ``step`` options that matter for the gradient are given again to :meth:`difference`.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, updates: int) -> None:
        self._model = model
        self._updates = updates
        self._made = 0
        self._before: nn.Module | None = None
        self._hook = optimizer.register_step_pre_hook(self._keep)

    def _keep(self, *_: Any) -> None:
        self._made += 1
        if self._made < self._updates:
            return
        self._hook.remove()
        gradients = [parameter.grad for parameter in self._model.parameters()]
        for parameter in self._model.parameters():
            parameter.grad = None  # so that the copy holds the weights alone
        self._before = copy.deepcopy(self._model)
        for parameter, gradient in zip(self._model.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def difference(self, loader: BatchLoader, loss: Any, micro_batch: int, **options: Any) -> float | None:
        """Return the largest difference between the two gradients, relative to the gradient's norm.

        None where the last step was not applied.

        Args:
            loader: stands before the last batch.
            loss: the loss.
            micro_batch: another one than in training.
            options: of :class:`wholebatch.step.Step`: precision, clip_norm, seed.
        """
        if self._before is None:
            return None
        model = self._before.train()
        device = next(p.device for p in model.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromiseWarning)  # said during training
            step = Step(
                model, SGD(model.parameters(), lr=0.0), loss, micro_batch=micro_batch, nonfinite="allow", **options
            )
            step.calls = self._updates - 1
            window = next(iter(loader.windows(micro_batch, device)))
            step(MicroBatches(window, samples=window.samples))
        first, second = _gradient(self._model), _gradient(model)
        return float((first - second).abs().max() / first.norm())


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
