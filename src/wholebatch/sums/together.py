"""Many sums over all processes at once: two collectives, however many there are.

Processes may come with different sums: another metric, other arguments. Buffers of different lengths cannot be
added, so the first one has a length that all processes know alike, whatever they bring: a place per process, where
each writes the code of what it brings, and a number of places for float64 sums that depends only on what was agreed
on before. Where all codes are equal, the second buffer, of int64, has one length everywhere. Sums that did not fit
in the first one follow by themselves, once: it is longer from then on.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from wholebatch.core.errors import InputError
from wholebatch.core.processes import Processes, current

if TYPE_CHECKING:
    from wholebatch.sums.additive import Additive

_PLACES = 256  # 2 KB, which cost no more than one number does

# How many places the first buffer has in each process group. All its processes write here in the same collective.
_places: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()


def all_reduce_together(sums: Sequence[Additive], group: Any = None) -> list[Additive]:
    """Return new objects with the sums of all processes; the given ones keep their own.

    All float64 sums cross in one buffer and all int64 counts in another. That every process means the same ones is
    found out by the first, in which each of them writes what it means.

    Raises:
        InputError: the processes have different sums; on every one of them, and the message tells the first difference.
    """
    processes = current(group)
    packed = [one._pack() for one in sums]
    floats = torch.cat([torch.zeros(0, dtype=torch.float64), *(part.cpu() for part, _ in packed)])
    ints = torch.cat([torch.zeros(0, dtype=torch.int64), *(part.cpu() for _, part in packed)])
    if processes.size > 1:
        floats = _sum_floats(processes, [one._signature() for one in sums], floats)
        ints = processes.sum_(ints)
    wholes = []
    for one, (own_floats, own_ints) in zip(sums, packed, strict=True):
        whole = one._blank()
        whole._unpack(floats[: len(own_floats)], ints[: len(own_ints)])
        floats, ints = floats[len(own_floats) :], ints[len(own_ints) :]
        wholes.append(whole)
    return wholes


def _sum_floats(processes: Processes, signatures: list[dict[str, Any]], floats: Tensor) -> Tensor:
    """Sum ``floats`` over processes that mean the same by them."""
    key = distributed.group.WORLD if processes.group is None else processes.group
    places = _places.get(key, _PLACES)
    buffer = torch.zeros(processes.size + places, dtype=torch.float64)
    buffer[processes.rank] = _code(signatures)
    buffer[processes.size :][: len(floats)] = floats[:places]
    processes.sum_(buffer)
    codes, sums = buffer[: processes.size].tolist(), buffer[processes.size :][: len(floats)]
    if len(set(codes)) > 1:
        _tell_difference(processes, signatures)
    if len(floats) <= places:
        return sums
    _places[key] = 2 * len(floats)
    return torch.cat([sums, processes.sum_(floats[places:].clone())])


def _code(signatures: list[dict[str, Any]]) -> float:
    """A number of 48 bits, which float64 holds exactly, beside zeros too."""
    return float(int.from_bytes(hashlib.blake2b(repr(signatures).encode(), digest_size=6).digest()))


def _tell_difference(processes: Processes, signatures: list[dict[str, Any]]) -> None:
    """Raise, in every process, with the first one whose sums are not those of process 0."""
    everyones = processes.gather([str(signature) for signature in signatures])
    rank = next((rank for rank, theirs in enumerate(everyones) if theirs != everyones[0]), 0)
    raise InputError(
        f"the processes have different sums: process 0 has {', '.join(everyones[0]) or 'none'}, and process {rank} has "
        f"{', '.join(everyones[rank]) or 'none'}; make the same metrics, with the same arguments, in every process"
    )
