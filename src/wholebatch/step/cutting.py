"""Where the batch of a step, or a window's pieces, are cut into micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from wholebatch.core import tree
from wholebatch.core.cuts import bounds_between
from wholebatch.core.errors import BatchError
from wholebatch.step.losses import LossCall
from wholebatch.step.micro_batch_size import MicroBatchSize
from wholebatch.step.passes import Passes
from wholebatch.step.reductions import Divisor
from wholebatch.step.window import MicroBatches

Piece = tuple[int, int, Any]  # the first sample, how many, and the micro-batch


class Cutting:
    """Cuts what a step is given.

    Args:
        loss: knows what of a batch is samples, and weights that the targets tell.
        axis: the samples'.
        size: of the micro-batches.
        passes: what the micro-batches run through.
        ahead: whether all are cut before the first one runs.
    """

    def __init__(
        self, loss: LossCall, axis: tree.Axis, size: MicroBatchSize, passes: Passes, ahead: bool = False
    ) -> None:
        self._loss, self._axis, self.size, self._passes, self._ahead = loss, axis, size, passes, ahead
        self.edges: tuple[int, ...] = ()
        """Where the parts of this process's logical workers are, where there are any."""

    def cut(self, batch: Any, met: Callable[[Any], None]) -> tuple[Divisor | None, int | None, Iterator[Piece]]:
        """Return the weight where the targets tell it, the samples where they are known, and the micro-batches.

        ``met`` is called with every piece of a window before it is cut.

        Raises:
            BatchError: tensors of different lengths, or no tensor at all.
        """
        if isinstance(batch, MicroBatches):
            return None, batch.samples, self._pieces_of_window(batch, met)
        batch = self._loss.cuttable(batch) if self._axis == 0 else batch
        samples = tree.count(batch, self._axis)
        return self._loss.ahead(batch) if self._axis == 0 else None, samples, self.pieces(batch, samples, 0)

    def listed(self, window: MicroBatches) -> MicroBatches:
        """Return a window that can be used again and knows its samples: this one, or one that keeps its pieces."""
        if window.again and window.samples is not None:
            return window
        pieces = list(window)
        counts = [tree.count(self._loss.cuttable(p) if self._axis == 0 else p, self._axis) for p in pieces]
        if window.samples is not None and sum(counts) != window.samples:
            raise BatchError(f"MicroBatches(samples={window.samples}) gave {sum(counts)} samples")
        return MicroBatches(pieces, sum(counts))

    def weight_of_first(self, batch: Any, weight: Any, first: int) -> Divisor | None:
        """Return the weight of the first samples of a batch whose weight was counted before it was cut."""
        batch = self._loss.cuttable(batch)
        if weight == batch[1].numel():  # every target weighs 1
            return first * (weight / len(batch[1]))
        return self._loss.ahead(tree.cut(batch, 0, first, tree.count(batch), 0))

    def pieces(self, batch: Any, samples: int, start: int) -> Iterator[Piece]:
        """Yield the micro-batches of a batch whose first sample is at ``start`` of the window."""
        if self.edges[-1:] == (samples,):
            size = self.size.of(batch, samples)
            for first, stop in bounds_between(self.edges, size):  # each worker's alike, whoever has them
                yield first, stop - first, tree.cut(batch, first, stop, samples, self._axis)
            return
        watched = self._passes.watched - start  # a window that is made again is cut there, too
        if 0 < watched < samples:
            yield from self._cut_up(tree.cut(batch, 0, watched, samples, self._axis), watched, start)
            rest = samples - watched
            yield from self._cut_up(tree.cut(batch, watched, samples, samples, self._axis), rest, start + watched)
        elif samples:
            yield from self._cut_up(batch, samples, start)

    def _cut_up(self, batch: Any, samples: int, start: int) -> Iterator[Piece]:
        norms = self._passes.norms
        single = bool(self._passes.promise.batch_norms)
        ignored = getattr(self._loss, "ignore_index", None)
        found = self.size.cuts(batch, samples, single, ignored, norms.align)
        if len(found) > 1:
            norms.refuse_cut(found[0][1], samples)
        parts = tree.cut_up(batch, found, samples, self._axis) if len(found) > 1 else (batch,)
        for (first, stop), piece in zip(found, parts, strict=True):
            yield start + first, stop - first, piece

    def _pieces_of_window(self, window: MicroBatches, met: Callable[[Any], None]) -> Iterator[Piece]:
        start = 0
        for piece in self._outside(window, met):
            piece = self._loss.cuttable(piece) if self._axis == 0 else piece
            samples = tree.count(piece, self._axis)
            if self.size.exactly and samples and start % int(self.size.asked):
                raise BatchError(
                    f"a piece of the window begins at sample {start}, within a micro-batch of {self.size.asked}; "
                    f"bitwise=True needs pieces of a multiple of {self.size.asked} samples, but for the last one"
                )
            yield from self.pieces(piece, samples, start)
            start += samples
        if window.samples is not None and start != window.samples:
            raise BatchError(f"MicroBatches(samples={window.samples}) gave {start} samples")

    def _outside(self, pieces: MicroBatches, met: Callable[[Any], None]) -> Iterator[Any]:
        """Ask for each piece under the caller's generators, which its loader may draw from."""
        iterator, draws = None, None if self._ahead else self._passes.draws
        while True:
            running = draws.pause() if draws is not None else None
            iterator = iter(pieces) if iterator is None else iterator  # a loader draws its seed here
            piece = next(iterator, self)
            if piece is not self:
                met(piece)
            if draws is not None:
                draws.resume(running)
            if piece is self:
                return
            yield piece
