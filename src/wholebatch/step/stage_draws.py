"""The draws of a pipeline's stages: the masks are those of the whole model in one process.

A call's number is that of the whole model: a stage counts on from the calls of the stages before it. Backward passes of
one micro-batch come between the forward passes of others, so that a recomputed call has to find not only its number but
its micro-batch as well: both are kept under the number that the call has drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wholebatch.core import keys
from wholebatch.step.draws import Draws, Shape


class StageDraws(Draws):
    """Keyed draws of the stages that one process has."""

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__(seed, device)
        self._known: dict[int, tuple[int, int, int]] = {}

    def begin(self, step: int) -> None:
        """A window begins."""
        self._step = step
        self._known.clear()

    def enter(self, stage: int, before: int, position: int, samples: int) -> None:
        """A stage's forward of one micro-batch begins.

        Args:
            stage: its number.
            before: the keyed calls of the stages before it.
            position: the first sample's place in the whole batch.
            samples: how many there are, those that do not count included.
        """
        self._before, self._position, self._samples = before, position, samples
        self._probed_shapes = None
        self._calls.clear()
        self._micro_batch_key = keys.key(self.seed, "generator", self._step, position, stage)
        self._cpu.manual_seed(self._micro_batch_key)
        if self._device is not None:
            self._device.manual_seed(self._micro_batch_key)

    @property
    def calls(self) -> int:
        """The keyed calls of this forward so far."""
        return len(self._calls)

    def _call(self) -> int:
        number = int(self._word.random_().item())
        if number not in self._known:
            self._calls[number] = len(self._calls)
            self._known[number] = (self._before + self._calls[number], self._position, self._samples)
        call, self._position, self._samples = self._known[number]
        return call

    def look(self, before: int, run: Callable[[], Any]) -> tuple[Any, int]:
        """Return what ``run`` gives with nothing dropped, and how many keyed calls it makes."""
        found: list[Any] = []
        self._before = before
        self.probe = lambda first, stop: found.append(run())
        shapes: list[Shape] = self.record(0, 0)
        self.probe = None
        return found[0], len(shapes) - before
