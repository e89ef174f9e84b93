"""What all sums share: they merge by adding, over parts of the data and over processes alike.

An additive object is a flat float64 vector and a flat int64 vector, and a signature that says what the
places mean. Two objects of one signature combine by adding the vectors; an empty one is the zero.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from wholebatch.core.errors import InputError, InputTypeError
from wholebatch.sums.together import all_reduce_together
from wholebatch.sums.total import Total

_LIMB = 1 << 32  # a Python int crosses processes as two int64, whose sums stay exact


class Additive(ABC):
    """Base of ``Accumulator``, ``Mean`` and ``Accuracy``."""

    @abstractmethod
    def _signature(self) -> dict[str, Any]:
        """What must be equal for two objects to be added: plain values only."""

    @abstractmethod
    def _blank(self) -> Self:
        """A new object of the same signature with nothing added."""

    @abstractmethod
    def _merge(self, other: Self) -> None:
        """Add what ``other``, of the same signature, holds."""

    @abstractmethod
    def _pack(self) -> tuple[Tensor, Tensor]:
        """Copies of everything held: float64 (n,) and int64 (m,)."""

    @abstractmethod
    def _unpack(self, floats: Tensor, ints: Tensor) -> None:
        """Hold what ``_pack`` gave, or a sum of such, instead of what is held now."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything that was added; storage on the device is kept and zeroed in place."""

    def merge(self, other: Self) -> Self:
        """Add everything that was added to ``other``, without a host read; return ``self``.

        Raises:
            InputTypeError: ``other`` is of another class.
            InputError: it was made with other arguments.
        """
        if not isinstance(other, type(self)):
            raise InputTypeError(f"only another {type(self).__name__} can be merged; got {type(other).__name__}")
        self._check(other._signature(), "merged")
        self._merge(other)
        return self

    def __add__(self, other: Self) -> Self:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._blank().merge(self).merge(other)

    def all_reduce(self, group: Any = None) -> Self:
        """Return a new object with the sums of all processes of ``group``; this one keeps its own.

        Every process of the group must call it. Without an initialised process group it is a copy.

        Raises:
            InputError: the processes have different objects.
        """
        (whole,) = all_reduce_together([self], group)
        assert isinstance(whole, type(self))
        return whole

    def state_dict(self) -> dict[str, Any]:
        """Return everything that was added, as tensors and plain values (``torch.load`` reads them safely)."""
        floats, ints = self._pack()
        return {"signature": self._signature(), "floats": floats, "ints": ints}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` returned; the next tensor added decides the device.

        Raises:
            InputError: it is no such state, or one of an object made with other arguments.
        """
        missing = [key for key in ("signature", "floats", "ints") if key not in state]
        if missing:
            raise InputError(
                f"this is no state of {type(self).__name__}: it lacks {', '.join(missing)} and has "
                f"{sorted(map(str, state))}; give what state_dict() returned"
            )
        self._check(state["signature"], "loaded")
        self._unpack(state["floats"].detach().clone(), state["ints"].detach().clone())

    def _check(self, signature: dict[str, Any], verb: str) -> None:
        own = self._signature()
        if signature != own:
            raise InputError(
                f"{_described(signature)} cannot be {verb} into {_described(own)}; make both with the same arguments"
            )

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # a shallow copy would go on adding to the same tensors


class AdditiveTotals(Additive):
    """An additive object that is a list of totals."""

    _totals: list[Total]

    def reset(self) -> None:
        """Forget everything that was added; storage on the device is kept and zeroed in place."""
        for total in self._totals:
            total.zero_()

    def _merge(self, other: Self) -> None:
        for mine, theirs in zip(self._totals, other._totals, strict=True):
            mine.merge(theirs)

    def _pack(self) -> tuple[Tensor, Tensor]:
        floats: list[float] = []
        ints: list[int] = []
        for total in self._totals:
            whole, real = total.parts()
            high, low = divmod(whole, _LIMB)
            floats.append(real or 0.0)
            ints += [high, low, int(real is not None)]
        device = next((total.device for total in self._totals if total.device is not None), None)
        return (
            torch.tensor(floats, dtype=torch.float64, device=device),
            torch.tensor(ints, dtype=torch.int64, device=device),
        )

    def _unpack(self, floats: Tensor, ints: Tensor) -> None:
        triples = ints.view(-1, 3).tolist()
        for total, real, (high, low, has_real) in zip(self._totals, floats.tolist(), triples, strict=True):
            total.set(high * _LIMB + low, real if has_real else None)


def _described(signature: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in signature.items() if name != "kind")
    return f"{signature.get('kind', 'an unknown object')}({arguments})"
