"""The micro-batches of one step, when somebody has them piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from wholebatch.core.errors import BatchError, InputTypeError


class MicroBatches:
    """A window given as an iterator of micro-batches; only one of them is in memory at a time.

    ``samples`` says how many samples all of them hold, where that is known. A piece larger than the
    step's ``micro_batch`` is cut. ``edges`` says where the parts of this process's logical workers begin, and where the
    last one ends, and ``whole`` how many samples the whole batch has (:class:`wholebatch.data.window.Window`). A list
    or a loader can be used again, an iterator is used up by one step.

    >>> window = MicroBatches(iter([[1, 2], [3]]), samples=3)
    >>> list(window)
    [[1, 2], [3]]

    Raises:
        InputTypeError: ``iterator`` cannot be iterated over.
        BatchError: ``samples`` is negative.
    """

    def __init__(
        self,
        iterator: Iterable[Any],
        samples: int | None = None,
        *,
        edges: Sequence[int] | None = None,
        whole: int | None = None,
    ) -> None:
        if not (isinstance(iterator, Iterable) or hasattr(iterator, "__getitem__")):
            raise InputTypeError(f"MicroBatches takes an iterator of micro-batches; got {type(iterator).__name__}")
        self._pieces = iterator
        if samples is not None and samples < 0:
            raise BatchError(f"MicroBatches(samples={samples}); a number of samples is 0 or more")
        self.samples = samples
        self.edges = None if edges is None else tuple(edges)
        self.whole = whole

    @property
    def again(self) -> bool:
        """Whether the pieces can be had once more, which those of an iterator cannot."""
        return not isinstance(self._pieces, Iterator)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._pieces)


def with_last(pieces: Iterable[tuple[int, int, Any]]) -> Iterator[tuple[int, int, Any, bool]]:
    """Yield every (start, samples, piece) with whether it is the last one, asking for one piece ahead.

    >>> list(with_last([(0, 2, "a"), (2, 1, "b")]))
    [(0, 2, 'a', False), (2, 1, 'b', True)]
    """
    before: tuple[int, int, Any] | None = None
    for piece in pieces:
        if before is not None:
            yield *before, False
        before = piece
    if before is not None:
        yield *before, True
