"""When the micro-batch of "auto" is found: with the other processes before the first step, by the plan alone later."""

from __future__ import annotations

import contextlib
from typing import Any

from wholebatch.core import tree
from wholebatch.core.processes import Processes
from wholebatch.step.losses import LossCall
from wholebatch.step.micro_batch_size import Finder, MicroBatchSize
from wholebatch.step.window import MicroBatches


class Fitting:
    """Has a :class:`Finder` find what ``size`` is for a batch.

    Args:
        size: is told what was found.
        finder: finds it.
        processes: who share the batch.
        loss: knows what of a batch is samples.
        axis: the samples'.
        in_parts: whether a process alone, having parts of the model, can try nothing.
    """

    def __init__(
        self,
        size: MicroBatchSize,
        finder: Finder,
        processes: Processes,
        loss: LossCall,
        axis: tree.Axis,
        in_parts: bool,
    ) -> None:
        self._size, self._finder, self._processes = size, finder, processes
        self._loss, self._axis, self._in_parts = loss, axis, in_parts
        self._begun = False

    def together(self, batch: Any, samples: int) -> int | None:
        """Find it with the other processes: the least of all (:meth:`wholebatch.Step.fit`)."""
        self._begun = True
        if self._in_parts:
            return None
        found = self._finder.find(batch, samples, measure=True) if self._size.automatic and samples else 0
        limits = self._processes.exchange(found if 0 < found < samples else 0)
        least = min((limit for limit in limits if limit), default=None)
        if self._size.automatic and batch is not None:
            self._size.choose(batch, samples, least)
        return least

    def find(self, batch: Any) -> None:
        """Find it for such a batch, or for a window's piece: the first time together, later by this process's plan."""
        if self._begun and (not self._size.automatic or self._in_parts):
            return
        samples = 0
        if not isinstance(batch, MicroBatches):
            with contextlib.suppress(Exception):  # the window itself says what is wrong
                batch = self._loss.cuttable(batch) if self._axis == 0 else batch
                samples = tree.count(batch, self._axis)
        if not self._begun:
            self.together(batch if samples else None, samples)
        elif samples and not self._size.known(batch, samples):
            self._size.choose(batch, samples, self._finder.find(batch, samples, measure=False))
