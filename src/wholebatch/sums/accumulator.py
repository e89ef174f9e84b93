"""Named sums: add values side by side, read totals."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, overload

from wholebatch.core.errors import InputError, InputTypeError, nearest
from wholebatch.sums.additive import AdditiveTotals
from wholebatch.sums.total import Number, Total


class Accumulator(AdditiveTotals):
    """Sums over any number of additions, side by side: ``Accumulator(2)`` or ``Accumulator("loss", "n")``.

    A number adds itself, a tensor the sum of its elements, detached and widened before it is summed:
    floating tensors in float64, integer and bool tensors in int64, on their own device, in place and
    without a host read. Python ints stay exact whatever their size. Tensors from a second device are moved
    to the first one's.

    An entry reads as a float, or as an int where nothing but integers (bools count) was ever added to it.
    NaN and infinity are kept and show when the entry is read.

    >>> import torch
    >>> acc = Accumulator("loss", "correct", "n")
    >>> acc.add(torch.tensor([0.5, 1.5]), torch.tensor([True, False]), 2)
    >>> acc.add(torch.tensor(1.0), torch.tensor(3), 4)
    >>> acc["loss"], acc["correct"], acc["n"], acc[-1], list(acc)
    (3.0, 4, 6, 6, [3.0, 4, 6])
    >>> acc.add(1.0, 2)
    Traceback (most recent call last):
        ...
    wholebatch.core.errors.InputError: add() takes 3 values (loss, correct, n); got 2
    """

    def __init__(self, *entries: int | str) -> None:
        self._names: tuple[str, ...] | None = None
        if entries and all(isinstance(entry, str) for entry in entries):
            self._names = tuple(str(entry) for entry in entries)
            if len(set(entries)) < len(entries):
                raise InputError(f"every entry needs a name of its own; got {', '.join(map(repr, entries))}")
            size = len(entries)
        else:
            size = _size(entries)
        self._totals = [Total() for _ in range(size)]

    @property
    def names(self) -> tuple[str, ...] | None:
        """The entries' names, None where they are only numbered."""
        return self._names

    def add(self, *values: Any) -> None:
        """Add one number, tensor or array to every entry, in the entries' order.

        Raises:
            InputError: there are more or fewer values than entries.
            InputTypeError: a value is no real number, tensor or array.
        """
        totals = self._totals
        if len(values) != len(totals):
            names = f" ({', '.join(self._names)})" if self._names else ""
            raise InputError(f"add() takes {len(totals)} values{names}; got {len(values)}")
        for total, value in zip(totals, values):  # noqa: B905 (lengths are equal, and strict costs)
            total.add(value)

    @overload
    def __getitem__(self, entry: int | str) -> Number: ...
    @overload
    def __getitem__(self, entry: slice) -> list[Number]: ...
    def __getitem__(self, entry: int | str | slice) -> Number | list[Number]:
        """Return an entry's sum, by number or name, or a list of sums for a slice; the host waits for the device.

        Raises:
            InputError: there is no entry of this name.
            IndexError: there is no entry of this number.
        """
        if isinstance(entry, slice):
            return [total.read() for total in self._totals[entry]]
        return self._totals[self._place(entry)].read()

    def _place(self, entry: int | str) -> int:
        """The number of an entry."""
        if isinstance(entry, str):
            if self._names is None:
                raise InputError(
                    f"this accumulator's entries have numbers, no names; got {entry!r}. "
                    f"Read acc[0] … acc[{len(self) - 1}], or make it with names: Accumulator({entry!r}, …)"
                )
            if entry not in self._names:
                raise InputError(
                    f"no entry is named {entry!r}{nearest(entry, self._names)} (there are {', '.join(self._names)})"
                )
            return self._names.index(entry)
        try:
            place = operator.index(entry)
        except TypeError:
            raise InputTypeError(f"an entry is read by its number or name; got {entry!r:.60}") from None
        if not -len(self) <= place < len(self):
            raise IndexError(f"entry {place} of an accumulator with {len(self)} entries")
        return place

    def __len__(self) -> int:
        return len(self._totals)

    def __iter__(self) -> Iterator[Number]:
        return (total.read() for total in self._totals)

    def mean(self) -> float:
        """Return the sum of the entries divided by the number of entries.

        >>> acc = Accumulator(2)
        >>> acc.add(3, 5)
        >>> acc.mean()
        4.0
        """
        return sum(self) / len(self)

    def _signature(self) -> dict[str, Any]:
        return {"kind": "Accumulator", "entries": list(self._names) if self._names else len(self)}

    def _blank(self) -> Accumulator:
        return Accumulator(*(self._names or (len(self),)))

    def __repr__(self) -> str:
        names = self._names or range(len(self))
        return f"Accumulator({', '.join(f'{name}: {value!r}' for name, value in zip(names, self, strict=True))})"


def _size(entries: tuple[int | str, ...]) -> int:
    """The number of entries where they are counted, not named."""
    repair = 'give one number of entries, Accumulator(2), or a name for each, Accumulator("loss", "n")'
    shown = ", ".join(map(repr, entries)) or "nothing"
    if len(entries) != 1 or isinstance(entries[0], bool | str):
        raise InputError(f"Accumulator was given {shown}; {repair}")
    try:
        size = operator.index(entries[0])
    except TypeError:
        raise InputTypeError(f"Accumulator was given {shown}; {repair}") from None
    if size < 1:
        raise InputError(f"an accumulator needs at least one entry, not {size}; {repair}")
    return size
