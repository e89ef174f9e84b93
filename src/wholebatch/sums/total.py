"""One exact running sum: the number that every accumulator here is made of.

Python numbers are summed on the host (ints exactly, whatever their size; floats in float64), tensors on
their own device (floating ones in float64, integer and bool ones in int64). Only reading joins the parts.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wholebatch.core.errors import InputTypeError

Number = int | float

# Copying a value into its place costs half of adding it to a float64 sum: there is no arithmetic in two types.
# 32 places make the fold's share of an addition small, and are quickly made.
_PLACES = 32

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class DeviceSum:
    """A float64 or int64 sum on one device.

    A value is added by being copied (callers overwrite their tensors) into the next free one of ``places``;
    a full row of them, or a read, is folded into the sum, in place.
    """

    __slots__ = ("_row", "_sum", "places", "used")

    def __init__(self, start: Tensor) -> None:
        with torch.inference_mode(False):  # born in inference mode, they could not be added to outside
            self._sum = start.clone()
            self._row = torch.zeros(_PLACES, dtype=start.dtype, device=start.device)
            self.places = self._row.unbind()
        self.used = 0

    @classmethod
    def empty(cls, dtype: torch.dtype, device: torch.device) -> DeviceSum:
        """Return a sum of nothing on ``device``, or on the CPU where the device has no float64."""
        return cls(torch.zeros((), dtype=dtype, device="cpu" if device.type == "mps" else device))

    @property
    def device(self) -> torch.device:
        """Where the sum is."""
        return self._sum.device

    def fold(self) -> Tensor:
        """Return the sum, a 0-dim tensor that later additions change."""
        if self.used:
            self._sum.add_((self._row if self.used == _PLACES else self._row[: self.used]).sum())
            self.used = 0
        return self._sum

    def zero_(self) -> None:
        """Forget everything, in place."""
        self.used = 0
        self._sum.zero_()

    def __reduce__(self) -> tuple[Any, ...]:
        return DeviceSum, (self.fold().detach().clone(),)  # without the places, which are many small tensors


class Total:
    """A sum of numbers and tensors; a tensor adds the sum of its elements, widened first.

    >>> total = Total()
    >>> total.add(2**60), total.add(torch.tensor([True, True]))
    (None, None)
    >>> total.read() - 2**60
    2
    """

    __slots__ = ("_real", "_sums", "_whole")

    def __init__(self) -> None:
        self._whole = 0  # Python ints
        self._real: float | None = None  # Python floats, None until there was one
        self._sums: dict[torch.dtype, DeviceSum] = {}  # where tensors of a type go: floating ones, integers and bools

    def add(self, value: Any) -> None:
        """Add a number, or the sum of a real tensor or array of any shape.

        Raises:
            InputTypeError: it is complex, or of another kind than these.
        """
        if isinstance(value, Tensor):
            total = self._sums.get(value.dtype)
            if total is None or value.ndim or value.requires_grad:
                total, value = self._prepared(value)
            used = total.used  # written out: a call less for each of the tensors of a step
            total.places[used].copy_(value)
            total.used = used = used + 1
            if used == _PLACES:
                total.fold()
        elif isinstance(value, int):
            self._whole += value
        elif type(value) is float:
            self._real = value if self._real is None else self._real + value
        else:
            self.add(plain(value))

    def _prepared(self, value: Tensor) -> tuple[DeviceSum, Tensor]:
        """The sum that a tensor belongs to, made where it is the first of its kind, and the 0-dim value to add."""
        value = real(value.detach())
        wide = torch.float64 if value.dtype.is_floating_point else torch.int64
        if value.ndim:
            value = value.sum(dtype=wide)
        if wide not in self._sums:
            place = DeviceSum.empty(wide, self.device or value.device)  # both sums are on one device
            self._sums.update(dict.fromkeys(_FLOATS if wide is torch.float64 else _INTS, place))
        return self._sums[wide], value

    @property
    def device(self) -> torch.device | None:
        """Where tensors are summed, None before the first one."""
        return next((place.device for place in self._sums.values()), None)

    def _both(self) -> tuple[DeviceSum, ...]:
        """The sums on the device, as far as there are any."""
        return tuple(self._sums[dtype] for dtype in (torch.int64, torch.float64) if dtype in self._sums)

    def read(self) -> Number:
        """Return the sum (the host waits for the device): an int where nothing but integers was added."""
        whole, real = self.parts()
        return whole if real is None else whole + real

    def parts(self) -> tuple[int, float | None]:
        """Return the exact sum of the integers and the sum of the floats, None where there was none."""
        whole, real = self._whole, self._real
        if torch.int64 in self._sums:
            whole += int(self._sums[torch.int64].fold().item())
        if torch.float64 in self._sums:
            real = (real or 0.0) + self._sums[torch.float64].fold().item()
        return whole, real

    def set(self, whole: int, real: float | None) -> None:
        """Become the sum of these two parts; the next tensor decides the device."""
        self._whole, self._real = whole, real
        self._sums = {}

    def merge(self, other: Total) -> None:
        """Add what another total holds, without a host read."""
        self._whole += other._whole
        if other._real is not None:
            self.add(other._real)
        for place in other._both():
            self.add(place.fold())

    def zero_(self) -> None:
        """Forget everything, in place."""
        self._whole = 0
        self._real = None if self._real is None else 0.0
        for place in self._both():
            place.zero_()


def plain(value: Any) -> Number | Tensor:
    """Return ``value`` as an int, a float or a tensor; an array as its sum.

    Raises:
        InputTypeError: it is none of these, or complex.
    """
    if isinstance(value, Tensor):
        return real(value)
    if isinstance(value, Integral | np.bool_):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if value.dtype.kind == "f":
            return float(value.sum(dtype=np.float64))
        return int(value.sum(dtype=np.uint64 if value.dtype.kind == "u" else np.int64))
    raise InputTypeError(
        f"only real numbers and real tensors can be summed; got {type(value).__name__} {value!r:.60}. "
        "Give an int, a float, a tensor or an array"
    )


def real(value: Tensor) -> Tensor:
    """Return a real tensor, one of a rare type (8-bit floats, wide unsigned integers) as float64 or int64.

    Raises:
        InputTypeError: it is complex.
    """
    if value.is_complex():
        raise InputTypeError(
            f"a sum is real, but a tensor of {value.dtype} and shape {tuple(value.shape)} was given; "
            "add its .real, .imag or .abs()"
        )
    if value.dtype in _FLOATS or value.dtype in _INTS:
        return value
    return value.to(torch.float64 if value.dtype.is_floating_point else torch.int64)
