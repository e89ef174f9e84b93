"""Many sums over all processes at once: two collectives, however many there are."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch

from wholebatch.core.errors import InputError
from wholebatch.core.processes import current
from wholebatch.sums.additive import Additive

_agreed: dict[tuple[int, str], bool] = {}


def all_reduce_together(sums: Sequence[Additive], group: Any = None) -> list[Additive]:
    """Return new objects with the sums of all processes; the given ones keep their own.

    All float64 sums cross in one buffer and all int64 counts in another; that every process means the same ones
    is found out once per list of signatures, by an exchange of one number each.

    Raises:
        InputError: the processes have different sums.
    """
    processes = current(group)
    signatures = repr([one._signature() for one in sums])
    if processes.size > 1 and (processes.size, signatures) not in _agreed:
        codes = processes.exchange(zlib.crc32(signatures.encode()))
        if len(set(codes)) > 1:
            raise InputError(
                f"the processes have different sums: process {processes.rank} has {signatures}, and others have not; "
                "make the same metrics, with the same arguments, in every process"
            )
        _agreed[processes.size, signatures] = True
    packed = [one._pack() for one in sums]
    floats = processes.sum_(torch.cat([part.cpu() for part, _ in packed]) if packed else torch.zeros(0))
    ints = processes.sum_(torch.cat([part.cpu() for _, part in packed]) if packed else torch.zeros(0))
    wholes = []
    for one, (own_floats, own_ints) in zip(sums, packed, strict=True):
        whole = one._blank()
        whole._unpack(floats[: len(own_floats)], ints[: len(own_ints)])
        floats, ints = floats[len(own_floats) :], ints[len(own_ints) :]
        wholes.append(whole)
    return wholes
