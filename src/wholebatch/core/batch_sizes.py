"""How many samples a batch has: a number, or a function of how far training is.

A schedule of batch sizes by epoch, or by samples drawn since training began (Smith et al. 2018, "Don't Decay the
Learning Rate, Increase the Batch Size", arXiv:1711.00489). The size of a batch is a function of where in the epoch's
order it begins, so that the place in the data stays two numbers: epoch, samples consumed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wholebatch.core.errors import ConfigError, InputTypeError, nearest

UNITS = ("epoch", "samples")
_EXAMPLE = "such as {0: 128, 10: 256}"


class BatchSizes:
    """The size of every batch of a training.

    Args:
        sizes: a number; a mapping from where a size begins (0 has to be there) to that size; or a function of the
            progress, which returns a size.
        unit: what is counted, from 0: "epoch", or "samples" drawn before the batch, over all epochs.

    Raises:
        ConfigError: a size or a beginning that is no whole number, no beginning at 0, or an unknown unit.
        InputTypeError: ``sizes`` is something else.

    >>> sizes = BatchSizes({0: 2, 1: 3})
    >>> sizes.cuts(epoch=0, samples=5), sizes.cuts(epoch=1, samples=5)
    ([(0, 2), (2, 4), (4, 5)], [(0, 3), (3, 5)])
    >>> BatchSizes({0: 2, 4: 3}, unit="samples").cuts(epoch=0, samples=8)
    [(0, 2), (2, 4), (4, 7), (7, 8)]
    """

    def __init__(self, sizes: int | Mapping[int, int] | Callable[[int], int], unit: str = "epoch") -> None:
        if unit not in UNITS:
            raise ConfigError(f"batch_size_unit={unit!r}; expected 'epoch' or 'samples'{nearest(str(unit), UNITS)}")
        self.unit = unit
        self.sizes = sizes
        self._starts: list[int] = []
        if isinstance(sizes, Mapping):
            self._starts = sorted(_whole(start, 0, "a beginning") for start in sizes)
            if self._starts[:1] != [0]:
                raise ConfigError(f"batch_size={dict(sizes)!r}: say the size from 0 on as well, {_EXAMPLE}")
            for size in sizes.values():
                _whole(size, 1, "a batch size")
        elif not callable(sizes):
            if isinstance(sizes, bool) or not isinstance(sizes, int):
                raise InputTypeError(
                    f"batch_size={sizes!r}: expected a whole number, a mapping {_EXAMPLE}, or a function"
                )
            _whole(sizes, 1, "a batch size")
        self.first = self._of(0)

    @property
    def fixed(self) -> bool:
        """Whether all batches have one size, but for the last one of an epoch."""
        return isinstance(self.sizes, int)

    @property
    def largest(self) -> int | None:
        """The largest size; None where only a function knows."""
        if isinstance(self.sizes, Mapping):
            return max(self.sizes.values())
        return self.sizes if isinstance(self.sizes, int) else None

    def at(self, epoch: int, consumed: int, samples: int) -> int:
        """Return the size of the batch that begins after ``consumed`` of an epoch's ``samples``."""
        return self._of(epoch if self.unit == "epoch" else epoch * samples + consumed)

    def cuts(self, epoch: int, samples: int, consumed: int = 0, drop_last: bool = False) -> list[tuple[int, int]]:
        """Return (begin, end) of every batch of an epoch of ``samples``, from ``consumed`` on."""
        return list(self._cuts(epoch, samples, consumed, drop_last))

    def _cuts(self, epoch: int, samples: int, consumed: int, drop_last: bool) -> Iterator[tuple[int, int]]:
        while consumed < samples:
            size = self.at(epoch, consumed, samples)
            if drop_last and consumed + size > samples:
                return
            yield consumed, min(samples, consumed + size)
            consumed += size

    def steps(self, epoch: int, samples: int, drop_last: bool = False) -> int:
        """Return how many batches an epoch has."""
        if self.unit == "samples" and not self.fixed:
            return len(self.cuts(epoch, samples, 0, drop_last))
        size = self.at(epoch, 0, samples)
        return samples // size if drop_last else -(-samples // size)

    def described(self) -> Any:
        """Return it in plain words that are the same in the next process."""
        if isinstance(self.sizes, Mapping):
            return {self.unit: [[start, self.sizes[start]] for start in self._starts]}
        return self.sizes if isinstance(self.sizes, int) else {self.unit: getattr(self.sizes, "__qualname__", "?")}

    def _of(self, progress: int) -> int:
        if isinstance(self.sizes, Mapping):
            return self.sizes[self._starts[bisect_right(self._starts, progress) - 1]]
        if isinstance(self.sizes, int):
            return self.sizes
        return _whole(self.sizes(progress), 1, f"the batch size at {self.unit} {progress}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchSizes) and (self.sizes, self.unit) == (other.sizes, other.unit)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return str(self.sizes) if self.fixed else f"BatchSizes({self.sizes!r}, unit={self.unit!r})"


def _whole(value: Any, least: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"batch_size: {what} is {value!r}; expected a whole number, {least} or more, {_EXAMPLE}")
    return value
