"""d2l's ``Accumulator``: the native one, read as floats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, overload

from wholebatch import sums
from wholebatch.sums.total import Total


class Accumulator(sums.Accumulator):
    """Sums over ``n`` variables: :class:`wholebatch.Accumulator`, with entries that are always floats, and ``data``.

    The book's drops what does not fit (a value too many) and entries that got none (a value too few); here a wrong
    number of values raises.

    >>> metric = Accumulator(3)
    >>> metric.add(3, 7, 1)
    >>> metric.add(5, 8, 1)
    >>> metric.data, metric[0], metric[1:], len(metric), metric.mean()
    ([8.0, 15.0, 2.0], 8.0, [15.0, 2.0], 3, 8.333333333333334)
    """

    def __init__(self, n: int) -> None:
        super().__init__(n)

    @property
    def data(self) -> list[float]:
        """The sums, as a list, which may be set anew; the host waits for the device."""
        return list(self)

    @data.setter
    def data(self, values: Iterable[float]) -> None:
        self._totals = []
        for value in values:
            total = Total()
            total.add(value)
            self._totals.append(total)

    @overload
    def __getitem__(self, entry: int | str) -> float: ...
    @overload
    def __getitem__(self, entry: slice) -> list[int | float]: ...
    def __getitem__(self, entry: int | str | slice) -> Any:
        """Return an entry's sum as a float, or a list of them for a slice."""
        found = super().__getitem__(entry)
        return [float(one) for one in found] if isinstance(found, list) else float(found)

    def __iter__(self) -> Iterator[float]:
        return (float(one) for one in super().__iter__())

    def _blank(self) -> Accumulator:
        return Accumulator(len(self))
