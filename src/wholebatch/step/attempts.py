"""A window is made, and where memory ran out made again (:mod:`wholebatch.step.redo`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from wholebatch.core.device import device_of
from wholebatch.core.errors import OutOfMemoryError
from wholebatch.core.processes import Processes
from wholebatch.step import redo
from wholebatch.step.available import left_by_limits
from wholebatch.step.bitwise import Bitwise, Moved
from wholebatch.step.cutting import Cutting
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.micro_batch_size import Finder
from wholebatch.step.passes import Passes
from wholebatch.step.report import StepReport
from wholebatch.step.window import MicroBatches


class Attempts:
    """Makes windows.

    Args:
        modules: whose buffers a window changes.
        processes: who share the batch.
        passes: knows what is running.
        accumulator: has the gradients.
        cutting: cuts micro-batches, which are made smaller.
        finder: has a plan.
        bitwise: of a bitwise step.
        redoes: whether a window can be made again: not where processes or workers have states of it.
        travels: whether an error is kept until all processes hear of it.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        processes: Processes,
        passes: Passes,
        accumulator: GradientAccumulator,
        cutting: Cutting,
        finder: Finder,
        bitwise: Bitwise | None,
        *,
        redoes: bool,
        travels: bool,
    ) -> None:
        device = device_of(modules[0])
        self._beginning = redo.Beginning(modules, device)
        self._processes, self._passes, self._accumulator = processes, passes, accumulator
        self._cutting, self._size, self._finder, self._bitwise = cutting, cutting.size, finder, bitwise
        self._redoes, self._travels = redoes, travels
        self._where = ""

    def make(self, window: Callable[[Any], StepReport], batch: Any, where: str) -> StepReport:
        """Call ``window`` until it is made.

        Args:
            window: goes through the window of a batch from its beginning to its end.
            batch: what the step was given.
            where: "step 3", in what is said.

        Raises:
            OutOfMemoryError: one sample alone does not fit, or the window cannot be made again.
        """
        self._where = where
        if self._redoes:
            # of a batch that is no window nothing draws but what keyed draws give back
            self._beginning.keep(generators=self._passes.draws is None or isinstance(batch, MicroBatches))
        if self._bitwise is not None:
            self._bitwise.again = False
            batch = self._listed(batch) if isinstance(batch, MicroBatches) else batch
        while True:
            said = ""
            try:
                return window(batch)
            except redo.RanOut as short:
                said = str(short)
            except Moved:
                assert self._bitwise is not None
                self._bitwise.again = True
                self._beginning.put_back()
                continue
            finally:
                running, self._passes.running = self._passes.running, None
            samples = running[1] if running is not None else self._size.most
            running = None  # a micro-batch need not be kept any longer
            self._make_smaller(batch, samples if said else 0, said)

    def of(self, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """What ``work`` returns; with several processes an error is kept, so that it can travel to all of them.

        So is that memory ran out: the window can be made again, unless the model is split over processes.
        """
        try:
            return work(), None
        except Exception as error:
            short = self._redoes and self._is_short(error)
            if short:
                said, whole = redo.forget(error), self._passes.norms.whole()
                if whole is None:
                    return None, redo.RanOut(said)
                error = OutOfMemoryError(
                    f"out of memory in {self._where}: {said}. {whole} normalises the whole batch as one group "
                    "(group=None), so that it cannot be cut; use wholebatch.convert_batchnorm(model, group=32)"
                )
            if self._travels:
                return None, error
            if short:
                raise error from None
            raise

    def _listed(self, window: MicroBatches) -> MicroBatches:
        """The window as one that can be made again."""
        listed, error = self.of(lambda: self._cutting.listed(window))
        return listed if error is None else MicroBatches(_Broken(error), 0)

    def _is_short(self, error: Exception) -> bool:
        """Whether memory ran out while the window was under way."""
        running: tuple[Any, int] | None = self._passes.running
        if redo.ran_out(error):
            return running is not None or self._size.most > 0
        if running is None or not redo.may_be_short(error):
            return False
        redo.forget(error)
        redo.free()
        return self._finder.too_large(*running, left_by_limits())

    def _make_smaller(self, batch: Any, samples: int, said: str) -> None:
        """Put everything back to the window's beginning; a smaller micro-batch for it and for the later ones."""
        for parameter in self._accumulator.parameters:
            parameter.grad = None
        self._passes.norms.forget()
        if self._bitwise is not None:
            self._beginning.put_back()
            raise OutOfMemoryError(
                f"out of memory in {self._where} with micro_batch={self._size.asked}, which bitwise=True "
                f"cannot make smaller, since the bits depend on it; name a smaller one: {said or 'on another process'}"
            )
        redo.free()
        align = self._passes.norms.align
        again = not isinstance(batch, MicroBatches) or batch.again
        word = redo.Word(samples, max(1, self._size.most), self._size.widest <= align, again, said)
        smaller = redo.agreed(self._processes, word, self._size.unit, self._where, align)
        if not self._size.shrink(smaller):
            raise OutOfMemoryError(f"out of memory in {self._where}, with samples that cost nothing: {said}")
        self._beginning.put_back()


class _Broken:
    """A window whose pieces could not be had; cutting it says why."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __iter__(self) -> Any:
        raise self._error
