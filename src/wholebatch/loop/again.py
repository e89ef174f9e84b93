"""The promise on one's own machine: the last step made once more, with another micro-batch."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from wholebatch.core.errors import PromiseWarning
from wholebatch.core.record import Observer, Progress, RunShape
from wholebatch.data import BatchLoader
from wholebatch.loop.modes import begin_training
from wholebatch.step import MicroBatches, Step

_SCALES = 41  # from the first scale of a float16 loss to the smallest


class LastStep(Observer):
    """Keeps the model as it is before a run's last step, to make that step once more.

    It observes the run. When that is over, the gradient of the last step stands in the model's ``.grad``, and
    :meth:`difference` compares it with that of the same batch in other micro-batches.
    """

    every_process = True  # the step that is made once more is one of all processes

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._steps = self._made = 0
        self._before: nn.Module | None = None
        self.micro_batch: int | None = None
        """That of training, in samples; None where a batch was not cut, or by tokens."""

    def goes_on_after(self, steps: int) -> None:
        """So many steps were made before the run went on here."""
        self._made = steps

    @property
    def kept(self) -> bool:
        """Whether the run came to its last step here."""
        return self._before is not None

    def start(self, run: RunShape) -> None:
        """Learn how many steps there will be."""
        assert run.steps is not None
        self._steps, self.micro_batch = run.steps, run.micro_batch
        self._before = None
        self._keep(made=self._made)

    def step(self, progress: Progress) -> None:
        """Keep the model when one step is left."""
        self._keep(made=progress.step)

    def _keep(self, made: int) -> None:
        if made != self._steps - 1:
            return
        gradients = [parameter.grad for parameter in self._model.parameters()]
        for parameter in self._model.parameters():
            parameter.grad = None  # so that the copy holds the weights alone
        self._before = copy.deepcopy(self._model)
        for parameter, gradient in zip(self._model.parameters(), gradients, strict=True):
            parameter.grad = gradient

    def difference(
        self, loader: BatchLoader, loss: Any, micro_batch: int | None, quiet: bool, **options: Any
    ) -> float | None:
        """Return the largest difference between the two gradients, relative to the gradient's norm.

        None where the last step changed nothing, having no gradient.

        Args:
            loader: stands before the last batch.
            loss: the loss.
            micro_batch: another one than in training; None where ``options`` have ``micro_batch_tokens``.
            quiet: leave out what training said already: why the result depends on the micro-batch.
            options: of :class:`wholebatch.step.Step`: precision, clip_norm, seed, micro_batch_tokens.
        """
        assert self._before is not None, "the run did not come to its last step"
        model = self._before
        begin_training(model)
        device = next(p.device for p in model.parameters())
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore", PromiseWarning)
            step = Step(
                model,
                SGD(model.parameters(), lr=0.0),
                loss,
                micro_batch=micro_batch or "auto",
                nonfinite="allow",
                **options,
            )
            window = next(iter(loader.windows(micro_batch, device, step.align)))
            for _ in range(_SCALES):
                step.calls = self._steps - 1
                if not step(MicroBatches(window, samples=window.samples)).skipped:
                    break  # else a float16 gradient overflowed, and the scale is smaller now
        first, second = _gradient(self._model), _gradient(model)
        norm = float(first.norm())
        return float((first - second).abs().max()) / norm if norm else None


def other_micro_batch(samples: int, micro_batch: int) -> int | None:
    """Return a micro-batch that cuts a batch of ``samples`` otherwise than ``micro_batch``; None where none can.

    >>> other_micro_batch(512, 128), other_micro_batch(413, 512), other_micro_batch(40, 1), other_micro_batch(1, 8)
    (51, 165, 40, None)
    """
    whole = min(samples, micro_batch)
    if whole > 1:
        return max(1, round(0.4 * whole))
    return samples if samples > 1 else None


def _gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().double() for p in model.parameters()]
    )
