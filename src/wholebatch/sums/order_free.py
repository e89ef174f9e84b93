"""Sums of tensors that have the same bits in whatever order and grouping they are added.

Floating-point addition rounds, so that (a + b) + c and a + (b + c) differ. Here every summand is first rounded to a
multiple of a *quantum*, a power of two, and what is added are these multiples as int64: exactly, hence in any order,
in any grouping, by any all-reduce. (Demmel and Nguyen 2013, "Fast Reproducible Floating-Point Summation", round to a
common grid, too.)

The quantum of a tensor follows from a bound 2^e of its summands and from their number n < 2^c (both known before)::

    quantum = 2^(e + c − 63)            n multiples of it, each of at most 2^(63 − c), fit in int64 together
    error ≤ n · quantum / 2 ≤ 2^(e + 2c − 64)

so the error of the sum is at most 2^-41 of the largest summand as long as that is at least 2^(e − w), w = 23 − 2c. From
c = 11 on (1,024 summands or more) a second int64 holds what rounding left of each summand, in quanta 2^20 times
smaller: w = 43 − 2c. Intermediate sums may wrap around; the final one fits.

Where the largest summand is 2^e or more, or below 2^(e − w), the sum is not valid: the bound follows the largest
summand, and the sum has to be made again. The bound is a function of the largest summand of the finished sum before
this one, or of this one's where that was not near enough; never of an order or a number of parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import InputError

MOST_SUMMANDS = 4096
NONE, STRANGE = -(1 << 20), 1 << 20  # in place of an exponent: all zeros so far; NaN or infinity among them

_BITS = 63
_TWO_LIMBS = 11  # c from which on a second int64 is needed
_LOW_BITS = 20  # how much smaller the second one's quantum is
_HEADROOM = 6  # a largest summand may grow by 2^6 without the sum being made again
_LEAST_QUANTUM = -960  # so that 1 / quantum is a float64; matters for float64 summands below 1e-270
_CHUNK = 1 << 17  # elements that are rounded at once, in scratch that stays in the cache


class OrderFreeSums:
    """One sum for each of several tensors, of which each summand gives one or none.

    ``begin(n)``, then ``add`` for each summand; then what the parts of a sum found as ``largest`` is combined by its
    maximum, ``settle`` says whether the sums are valid, and if so ``multiples`` is added up over the parts.

    Args:
        like: tensors of the shapes, on the devices.

    >>> sums = OrderFreeSums([torch.zeros(1, dtype=torch.float64)])
    >>> for order in ([1e16, 1.0, -1e16], [1.0, 1e16, -1e16], [1e16, -1e16, 1.0]):
    ...     for again in (False, True):  # the first time shows how large the summands are
    ...         sums.begin(3, again)
    ...         for value in order:
    ...             sums.add([torch.tensor([value], dtype=torch.float64)])
    ...         valid = sums.settle(sums.largest)
    ...     print(sums.value(0).item())
    1.0
    1.0
    1.0
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._shapes = [tensor.shape for tensor in like]
        self._devices = [tensor.device for tensor in like]
        self.exponents: list[int | None] = [None] * len(like)
        """Of each tensor: the largest summand of the last valid sum is below 2^exponent, and not below half of it."""
        self._wanted: list[int | None] = list(self.exponents)
        self._places, self._lengths = self._layout()
        self._high: dict[torch.device, Tensor] = {}
        self._low: dict[torch.device, Tensor] = {}
        self._scratch: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._found: list[Tensor] = []
        self._settled: list[int] = []  # of the valid sums: the exponents of their quanta
        self._strange: list[bool] = []
        self._log = 0
        self._looking = True

    def _layout(self) -> tuple[list[tuple[torch.device, int, int]], dict[torch.device, int]]:
        lengths: dict[torch.device, int] = {}
        places = []
        for shape, device in zip(self._shapes, self._devices, strict=True):
            begin = lengths.get(device, 0)
            lengths[device] = begin + shape.numel()
            places.append((device, begin, lengths[device]))
        return places, lengths

    def begin(self, summands: int, again: bool = False) -> None:
        """Start from nothing; there will be at most ``summands`` in all parts together.

        ``again`` says that the same sum is made again, since the one before was not valid.

        Raises:
            InputError: more than 4,096.
        """
        if summands > MOST_SUMMANDS:
            raise InputError(f"{summands} summands; an order-free sum takes at most {MOST_SUMMANDS}")
        self._log = summands.bit_length()
        if not again:
            self._wanted = list(self.exponents)
        self._looking = not any(exponent is not None for exponent in self._wanted)
        self._found = []
        if self._looking:  # nothing is known yet; this pass is for the largest summands alone
            return
        self._high = self._zeros(self._high)
        self._low = self._zeros(self._low) if self._log >= _TWO_LIMBS else {}

    def _zeros(self, before: dict[torch.device, Tensor]) -> dict[torch.device, Tensor]:
        with torch.inference_mode(False):
            return {
                device: before[device].zero_()
                if device in before
                else torch.zeros(length, dtype=torch.int64, device=device)
                for device, length in self._lengths.items()
            }

    def add(self, summand: Sequence[Tensor | None]) -> None:
        """Add one summand: a tensor, or None, for each sum. Nothing is read from the device."""
        with torch.no_grad():
            found = [_largest(tensor) for tensor in summand]
            self._found.append(_stacked(found))
            if len(self._found) == 64:
                self._found = [torch.stack(self._found).amax(0)]
            if self._looking:
                return
            for number, tensor in enumerate(summand):
                if tensor is not None and tensor.numel():
                    self._add(number, tensor.reshape(-1))

    def _add(self, number: int, values: Tensor) -> None:
        device, begin, end = self._places[number]
        high = self._high[device][begin:end]
        low = self._low[device][begin:end] if self._low else None
        scale = 2.0 ** -self._quantum(number)
        if device not in self._scratch:
            size = _CHUNK if device.type == "cpu" else 1 << 24
            self._scratch[device] = (
                torch.empty(size, dtype=torch.float64, device=device),
                torch.empty(size, dtype=torch.int64, device=device),
            )
        reals, wholes = self._scratch[device]
        for start in range(0, len(values), len(reals)):
            part = values[start : start + len(reals)]
            real, whole = reals[: len(part)], wholes[: len(part)]
            real.copy_(part).mul_(scale)
            if low is None:
                high[start : start + len(part)] += whole.copy_(real.round_())
                continue
            rounded = real.round()
            high[start : start + len(part)] += whole.copy_(rounded)
            low[start : start + len(part)] += whole.copy_(real.sub_(rounded).mul_(2.0**_LOW_BITS).round_())

    def _quantum(self, number: int) -> int:
        """The exponent of a tensor's quantum."""
        wanted = self._wanted[number]
        bound = 0 if wanted is None else wanted + self._headroom
        return max(_LEAST_QUANTUM, bound + self._log - _BITS)

    @property
    def _window(self) -> int:
        return 23 - 2 * self._log + (_LOW_BITS if self._log >= _TWO_LIMBS else 0)

    @property
    def _headroom(self) -> int:
        return min(_HEADROOM, self._window // 2)

    @property
    def largest(self) -> Tensor:
        """The exponents of the largest summands of this part so far, int64, (sums,), on the CPU; reads the device.

        The largest summand is below 2^exponent and not below half of it; ``NONE`` where there are only zeros,
        ``STRANGE`` where one is not finite. The maximum of those of the parts is that of the whole.
        """
        if not self._found:
            return torch.full((len(self._shapes),), NONE, dtype=torch.int64)
        values = torch.stack(self._found).amax(0).cpu()
        exponents = torch.frexp(values)[1].to(torch.int64)
        exponents[values == 0] = NONE
        exponents[~values.isfinite()] = STRANGE
        return exponents

    def settle(self, largest: Tensor) -> bool:
        """Say whether the sums are valid, given ``largest`` of all parts; the bounds follow.

        Where they are not, the sum is to be made again from ``begin`` on; it is valid then if the summands are the
        same. A sum with NaN or infinity among its summands is NaN (``value``).
        """
        valid = True
        self._strange = [exponent == STRANGE for exponent in largest.tolist()]
        for number, exponent in enumerate(largest.tolist()):
            if exponent in (NONE, STRANGE):
                continue
            wanted = self._wanted[number]
            bound = None if wanted is None else wanted + self._headroom
            if self._looking or bound is None or not bound - self._window < exponent <= bound:
                valid = False
                self._wanted[number] = exponent
        if self._looking and valid:  # zeros alone, or nothing finite
            self._high = self._zeros(self._high)
            self._looking = False
        if valid:
            pairs = zip(self._wanted, largest.tolist(), strict=True)
            self.exponents = [kept if found in (NONE, STRANGE) else found for kept, found in pairs]
            self._settled = [self._quantum(number) for number in range(len(self._shapes))]
            self._wanted = list(self.exponents)
        return valid

    @property
    def multiples(self) -> list[Tensor]:
        """What is added up over parts: flat int64 tensors, in place; the same lengths in every part."""
        return [*self._high.values(), *self._low.values()]

    def value(self, number: int) -> Tensor:
        """Return a sum of the settled ones as float64, of the tensor's shape."""
        device, begin, end = self._places[number]
        shape = self._shapes[number]
        if self._strange[number]:
            return torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        quantum = 2.0 ** self._settled[number]
        real = self._high[device][begin:end].to(torch.float64).mul_(quantum)
        if self._low:
            real += self._low[device][begin:end].to(torch.float64).mul_(quantum * 2.0**-_LOW_BITS)
        return real.view(shape)

    def state_dict(self) -> dict[str, Any]:
        """Return the exponents, which the next sums' quanta follow from."""
        return {"exponents": list(self.exponents)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            InputError: it is of another number of sums.
        """
        exponents = list(state["exponents"])
        if len(exponents) != len(self._shapes):
            raise InputError(f"a state of {len(exponents)} sums for {len(self._shapes)}; it is of another model")
        self.exponents = exponents
        self._wanted = list(exponents)


def _largest(tensor: Tensor | None) -> Tensor | None:
    """The largest absolute value, or NaN or infinity where there is one."""
    if tensor is None or not tensor.numel():
        return None
    least, most = torch.aminmax(tensor.detach())
    return torch.maximum(-least, most)


def _stacked(found: Sequence[Tensor | None]) -> Tensor:
    """One float64 per sum, 0 where there is no summand."""
    device = next((value.device for value in found if value is not None), torch.device("cpu"))
    zero = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode(False):
        return torch.stack([zero if value is None else value.to(device, torch.float64) for value in found])
