"""Where a process's samples are in the whole batch, and how many passes it makes: what takes the others to know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wholebatch.core import tree
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Processes
from wholebatch.step.bitwise import Bitwise
from wholebatch.step.by_position import place_of
from wholebatch.step.cutting import Piece
from wholebatch.step.logical import FAILED, agree_on_edges

_UNKNOWN = -1  # in place of a number of samples


def place(
    processes: Processes, samples: int | None, position: int | None, error: Exception | None
) -> tuple[int | None, int]:
    """Return this process's place (None: unknown), and the samples of the whole batch, by an exchange of counts.

    All processes call it, always: an exchange on a condition would deadlock.

    Args:
        processes: who shares the batch.
        samples: of this process; None where it does not know.
        position: its place, where the caller said it.
        error: what went wrong on this process; every process raises then.
    """
    counts = processes.exchange(FAILED if error is not None else _UNKNOWN if samples is None else samples)
    if FAILED in counts:
        raise_together(processes, error)
    before = None if _UNKNOWN in counts else sum(counts[: processes.rank])
    return before if position is None else position, max(1, sum(count for count in counts if count > 0))


def place_whole_micro_batches(
    processes: Processes,
    bitwise: Bitwise,
    micro_batch: int,
    samples: int,
    position: int | None,
    error: Exception | None,
) -> tuple[int, int]:
    """Likewise where every process has whole micro-batches; ``bitwise`` is told.

    Raises:
        BatchError: on every process, where one of them has not.
    """
    said = 0 if position is None else position + 1
    told = processes.exchange(FAILED if error is not None else said << 32 | samples)
    if FAILED in told:
        raise_together(processes, error)
    counts, positions = [one & 0xFFFFFFFF for one in told], [(one >> 32) - 1 for one in told]
    begin, micro_batches = place_of(counts, positions, processes.rank, micro_batch)
    bitwise.place(begin // micro_batch, micro_batches)
    return begin, max(1, sum(counts))


def place_workers(
    processes: Processes,
    workers: int,
    samples: int | None,
    position: int | None,
    error: Exception | None,
    edges: Sequence[int] | None,
) -> tuple[tuple[int, ...], int]:
    """Return where this process's logical workers' parts are, and its place: as ``edges`` says, or by an exchange."""
    if edges is not None and position is not None:
        return tuple(edges), position
    found, begin, _ = agree_on_edges(processes, workers, samples if error is None else FAILED)
    if not found:
        raise_together(processes, error)
    return found, begin if position is None else position


def as_many_as_the_others(
    processes: Processes, own: Sequence[Piece], error: Exception | None, stands_in: bool, axis: tree.Axis
) -> Iterator[Piece]:
    """Return this process's micro-batches, and what makes them as many as those of the process that has most.

    Where passes wait for each other every process has to make as many: one that has fewer samples goes on with one
    sample of another process, which is none of the batch's (0 samples). That takes an exchange, always; the pieces are
    read before it, so that an error of the data is everybody's.

    Args:
        processes: who waits for each other.
        own: this process's.
        error: what went wrong on this process; every process raises then.
        stands_in: whether passes have to be as many.
        axis: the samples'.
    """
    counts = processes.exchange(FAILED if error is not None else len(own))
    if FAILED in counts:
        raise_together(processes, error)
    if len(set(counts)) == 1 or not stands_in:
        return iter(own)
    giver = next(rank for rank, count in enumerate(counts) if count)
    example = tree.cut(own[0][2], 0, 1, own[0][1], axis) if giver == processes.rank else None
    example = processes.gather(example)[giver]
    end = own[-1][0] + own[-1][1] if own else 0
    return iter([*own, *[(end, 0, example)] * (max(counts) - len(own))])
