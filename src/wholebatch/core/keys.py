"""Randomness as a function: every draw is a hash of (seed, purpose, index …), never a state.

Host side, :func:`key` chains splitmix64 (Steele, Lea, Flood 2014) over the parts. On a device,
:func:`random_bits` hashes consecutive counters with two rounds of the multiply-xorshift family
(constants of lowbias32, C. Wellons 2018), in place on one int32 buffer, because every temporary costs
as much as the arithmetic. It is no cryptography; it is fast and has no structure that a network could see.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_PURPOSES = {"order": 1, "augment": 2, "dropout": 3, "generator": 4, "split": 5, "init": 6, "coupled": 20}
_PURPOSES |= {"powersgd": 21}
_SPAN = 1 << 31  # counters of one hash stay below this, so that the key alone decides their sign


def _mix(value: int) -> int:
    """Splitmix64's finaliser: a bijection of 64-bit integers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def key(seed: int, purpose: str, *index: int) -> int:
    """Return the 64-bit key of (seed, purpose, index …).

    ``purpose`` is one of ``order``, ``augment``, ``dropout``, ``generator``, ``split``, ``init``.

    >>> key(0, "order", 3) == key(0, "order", 3), key(0, "order", 3) == key(0, "order", 4)
    (True, False)
    """
    value = _mix((seed & _MASK64) ^ (_PURPOSES[purpose] << 56))
    for part in index:
        value = _mix(value ^ (part & _MASK64))
    return value


def generator(seed: int, purpose: str, *index: int) -> torch.Generator:
    """Return a CPU generator seeded by ``key(seed, purpose, *index)``."""
    return torch.Generator().manual_seed(key(seed, purpose, *index))


def _signed(value: int) -> int:
    """The low 32 bits of ``value`` as a signed integer."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def _hash_(counters: Tensor, key: int, scratch: Tensor) -> Tensor:
    """Hash int32 ``counters`` in place, ``scratch`` being of the same shape.

    Torch shifts signed integers arithmetically, which costs a bit where the sign varies. The first
    shift sees one sign only (counters are below 2^31, the key decides); at the second one the values are
    already mixed, so that the lost bit makes chance collisions and no pattern. The upper half of the key is
    added before the last multiplication (as a multiplier it would leave masks that correlate with themselves).
    """
    counters.bitwise_xor_(_signed(key))
    torch.bitwise_right_shift(counters, 16, out=scratch)
    counters.bitwise_xor_(scratch).mul_(0x7FEB352D)
    torch.bitwise_right_shift(counters, 15, out=scratch)
    return counters.bitwise_xor_(scratch).add_(_signed(key >> 32)).mul_(_signed(0x846CA68B))


def random_bits(key: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the 32 random bits of each counter in ``start … start + count``, int32, shape (count,).

    The bits of a counter depend on ``key`` and the counter alone.

    >>> whole = random_bits(7, 0, 10)
    >>> torch.equal(whole[4:], random_bits(7, 4, 6))
    True
    """
    bits = torch.empty(count, dtype=torch.int32, device=device)
    scratch = torch.empty_like(bits)
    done = 0
    while done < count:
        high, low = divmod(start + done, _SPAN)
        size = min(count - done, _SPAN - low)
        part = bits if size == count else bits[done : done + size]
        torch.arange(low, low + size, out=part)
        _hash_(part, _mix(key ^ high), scratch if size == count else scratch[done : done + size])
        done += size
    return bits


def uniform(key: int, indices: Tensor, columns: int) -> Tensor:
    """Return draws from [0, 1), float32, shape (len(indices), columns); row i depends on ``indices[i]`` alone.

    ``indices`` is a one-dimensional integer tensor, on any device; the draws are on the same device.

    >>> rows = uniform(7, torch.tensor([5, 9, 5]), 2)
    >>> rows.shape, torch.equal(rows[0], rows[2]), torch.equal(rows[0], rows[1])
    (torch.Size([3, 2]), True, False)
    """
    rows = indices.to(torch.int32, copy=True)
    _hash_(rows, _mix(key), torch.empty_like(rows))
    column = torch.arange(columns, dtype=torch.int32, device=indices.device) * -1640531527
    bits = rows.unsqueeze(1) + column
    _hash_(bits, _mix(key + 1), torch.empty_like(bits))
    return ((bits >> 8) & 0xFFFFFF).to(torch.float32).mul_(2.0**-24)
