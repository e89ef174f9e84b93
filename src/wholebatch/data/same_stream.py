"""A stream that every process reads for itself: all of them get the same batches, or all are told that they do not."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import torch

from wholebatch.core import tree
from wholebatch.core.errors import BatchError, DataError, PromiseWarning
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Processes

_LOOKED_AT = 64  # elements of every tensor, evenly spread, that are compared
_CODES = 1 << 32  # of what a batch holds; above them is the number of its samples
_END, _FAILED = 0, 1  # in place of that number, to which 2 is added


class SameStream:
    """Compares what the processes read from their streams, and warns once."""

    def __init__(self) -> None:
        self._told = False

    def same(self, batches: Iterator[Any], processes: Processes) -> Iterator[Any]:
        """Yield the batches of this process, each when every process has its own; a small exchange for each.

        A process that is at the end, fails, or has another number of samples would leave the others waiting in the
        step that follows. Batches of one number whose samples differ are only warned of: random augmentation makes
        them differ as another order does.

        Raises:
            DataError: the processes have different numbers of samples, or of batches; on every one of them.
            PeerError: another process cannot read on; this one's own error is raised where it has one.
        """
        number = 0
        while True:
            number += 1
            batch, state, error = _next(batches)
            states = processes.exchange(state)
            if len({one // _CODES for one in states}) > 1 or error is not None:
                raise_together(processes, error)
                _raise_apart(processes, number, state // _CODES)
            if state == _END:
                return
            if not self._told and len(set(states)) > 1:
                self._told = True
                _warn(processes, number)
            yield batch


def samples_of(batch: Any) -> int:
    """Return how many samples a batch of a stream has.

    Raises:
        DataError: it cannot be cut along axis 0.
    """
    try:
        return tree.count(batch)
    except BatchError as error:
        raise DataError(f"the batches of a stream are cut along axis 0: {error}") from error


def _next(batches: Iterator[Any]) -> tuple[Any, int, Exception | None]:
    """The next batch, what is told of it, and what went wrong."""
    nothing = object()
    try:
        batch = next(batches, nothing)
        if batch is nothing:
            return None, _END, None
        return batch, (samples_of(batch) + 2) * _CODES + _code(batch), None
    except Exception as error:
        return None, _FAILED * _CODES, error


def _code(batch: Any) -> int:
    """A checksum of a few elements; of what is not on the CPU, which reading would wait for, nothing."""
    code = 0
    for _, array, _ in tree.arrays(batch):
        flat = torch.as_tensor(array).detach().reshape(-1)
        if flat.device.type == "cpu" and len(flat):
            places = torch.linspace(0, len(flat) - 1, min(_LOOKED_AT, len(flat)), dtype=torch.float64).long()
            code = zlib.crc32(flat[places].contiguous().view(torch.uint8).numpy().tobytes(), code)
    return code


def _raise_apart(processes: Processes, number: int, told: int) -> None:
    """Raise on every process, saying how many samples each has."""
    counts = processes.exchange(told)
    found = [f"{count - 2 if count else 'none'} in process {rank}" for rank, count in enumerate(counts)]
    raise DataError(
        f"the processes read different data: samples of batch {number} of the epoch: {', '.join(found)}; every process "
        "reads the whole stream and takes its part of each batch, so give all of them the same one, not a shard"
    )


def _warn(processes: Processes, number: int) -> None:
    if processes.rank == 0:
        warnings.warn(
            f"the processes read different samples from this stream, first in batch {number} of the epoch: each takes "
            "its part of its own, so that samples may be trained with twice, or not at all. Seed what draws the order "
            "alike in every process, or give the data set itself, whose order is a function of seed and epoch",
            PromiseWarning,
            stacklevel=2,
        )
