"""One whole batch that is fetched piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from wholebatch.core import tree
from wholebatch.core.cuts import bounds_between


class Window:
    """The samples of one optimizer step; iterating gives their micro-batches one after the other.

    A micro-batch is gathered when it is asked for, so the whole batch need never be in memory. A window
    can be iterated again and gives the same again (the step of a stream keeps its one batch for that).

    Attributes:
        samples: how many samples of the whole batch are this process's: all of them in one process.
        position: the first of these samples' place in the whole batch; 0 in one process.
        indices: the samples' numbers in the data set, int64, (samples,), on the host. In a stream, which
            has no such numbers, their places in the stream.
        epoch: the epoch they belong to, from 0.
        micro_batch: how many samples a micro-batch holds, or None for all.
        whole_samples: samples of the whole batch, where they are known.
        edges: where the parts of this process's logical workers begin in the window, and where the last one ends;
            micro-batches do not reach over them.
    """

    def __init__(
        self,
        gather: Callable[[int, int], Any],
        indices: Tensor,
        epoch: int,
        micro_batch: int | None = None,
        at_once: bool = False,
        finish: Callable[[Any, Tensor], Any] | None = None,
        position: int = 0,
        align: int = 1,
        rest_of_one: bool = False,
        whole: int | None = None,
        edges: Sequence[int] = (),
    ) -> None:
        """Make a window.

        Args:
            gather: gives the batch of the samples ``start ... stop`` of the window.
            indices: see above.
            epoch: see above.
            micro_batch: see above.
            at_once: gather all samples first and cut views of them, for small samples that all are rows of tensors.
            finish: moves a micro-batch to its device and transforms it, given the micro-batch and its indices.
            position: see above.
            align: micro-batches are cut at multiples of it (:func:`wholebatch.core.cuts.bounds`).
            rest_of_one: a last micro-batch may hold one sample.
            whole: see above.
            edges: see above; none is one part.
        """
        self.samples = indices.shape[0]
        self.position = position
        self.indices = indices
        self.epoch = epoch
        self.micro_batch = micro_batch
        self.whole_samples = whole
        self.edges = tuple(edges) or (0, self.samples)
        self._gather, self._at_once, self._finish, self._align = gather, at_once, finish, align
        self._rest_of_one = rest_of_one

    def __iter__(self) -> Iterator[Any]:
        cuts = self._cuts()
        if self._at_once and len(cuts) > 1:
            pieces = tree.cut_up(self._gather(0, self.samples), cuts, self.samples)
        else:
            pieces = (self._gather(start, stop) for start, stop in cuts)
        if self._finish is None:
            return iter(pieces)
        finish, indices = self._finish, self.indices
        return (finish(piece, indices[start:stop]) for piece, (start, stop) in zip(pieces, cuts, strict=True))

    def whole(self) -> Any:
        """Return the whole batch at once."""
        batch = self._gather(0, self.samples)
        return batch if self._finish is None else self._finish(batch, self.indices)

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return len(self._cuts())

    def _cuts(self) -> list[tuple[int, int]]:
        return bounds_between(self.edges, self.micro_batch, self._align, not self._rest_of_one)

    def __repr__(self) -> str:
        return f"Window({self.samples} samples of epoch {self.epoch} in {len(self)} micro-batches)"
