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
from collections.abc import Callable, Sequence
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


def all_reduce_together(
    sums: Sequence[Additive], group: Any = None, offer: int = 0, accept: Callable[[int], Additive] | None = None
) -> list[Additive]:
    """Return new objects with the sums of all processes; the given ones keep their own.

    All float64 sums cross in one buffer and all int64 counts in another. That every process means the same ones is
    found out by the first, in which each of them writes what it means.

    Args:
        sums: what this process has.
        group: torch.distributed's process group.
        offer: a number above 0 that describes one sum more, which this process has found a need for, or 0.
        accept: is given the largest offer of all processes, where there is one, and returns that sum, of counts alone;
            it comes last in what is returned. All processes give it, or none.

    Raises:
        InputError: the processes have different sums; on every one of them, and the message tells the first difference.
    """
    processes = current(group)
    packed = [one._pack() for one in sums]
    floats = torch.cat([torch.zeros(0, dtype=torch.float64), *(part.cpu() for part, _ in packed)])
    if processes.size > 1:
        meant = [str(one._signature()) for one in sums] + ["what is offered"] * (accept is not None)
        floats, offer = _sum_floats(processes, meant, floats, offer)
    if accept is not None and offer:
        sums = [*sums, accept(offer)]
        packed.append(sums[-1]._pack())
        assert not len(packed[-1][0]), "a sum that is offered holds counts alone"
    ints = processes.sum_(torch.cat([torch.zeros(0, dtype=torch.int64), *(part.cpu() for _, part in packed)]))
    wholes = []
    for one, (own_floats, own_ints) in zip(sums, packed, strict=True):
        whole = one._blank()
        whole._unpack(floats[: len(own_floats)], ints[: len(own_ints)])
        floats, ints = floats[len(own_floats) :], ints[len(own_ints) :]
        wholes.append(whole)
    return wholes


def _sum_floats(processes: Processes, meant: list[str], floats: Tensor, offer: int) -> tuple[Tensor, int]:
    """Sum ``floats`` over processes that mean the same by them; return the largest offer, too."""
    key = distributed.group.WORLD if processes.group is None else processes.group
    places = _places.get(key, _PLACES)
    buffer = torch.zeros(2 * processes.size + places, dtype=torch.float64)
    codes, offers, sums = buffer.split([processes.size, processes.size, places])
    codes[processes.rank], offers[processes.rank] = _code(meant), offer
    sums = sums[: len(floats)]
    sums.copy_(floats[:places])
    processes.sum_(buffer)
    if len(set(codes.tolist())) > 1:
        _tell_difference(processes, meant)
    if len(floats) > places:
        _places[key] = 2 * len(floats)
        sums = torch.cat([sums, processes.sum_(floats[places:].clone())])
    return sums, int(offers.max())


def _code(meant: list[str]) -> float:
    """A number of 48 bits, which float64 holds exactly."""
    return float(int.from_bytes(hashlib.blake2b(repr(meant).encode(), digest_size=6).digest()))


def _tell_difference(processes: Processes, meant: list[str]) -> None:
    """Raise, in every process, with the first one whose sums are not those of process 0."""
    everyones = processes.gather(meant)
    rank = next((rank for rank, theirs in enumerate(everyones) if theirs != everyones[0]), 0)
    raise InputError(
        f"the processes have different sums: process 0 has {', '.join(everyones[0]) or 'none'}, and process {rank} has "
        f"{', '.join(everyones[rank]) or 'none'}; make the same metrics, with the same arguments, in every process"
    )
