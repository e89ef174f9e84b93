"""Where a batch is cut into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from wholebatch.core.errors import BatchError


@lru_cache(maxsize=256)
def _bounds(samples: int, micro_batch: int, avoid_single: bool, align: int) -> tuple[tuple[int, int], ...]:
    starts = list(range(0, samples, micro_batch))
    if align > 1:
        if avoid_single and len(starts) > 1 and samples - starts[-1] == 1:
            starts.pop()
    elif avoid_single and micro_batch > 1 and len(starts) > 1 and samples - starts[-1] == 1:
        if micro_batch == 2:
            starts.pop()
        else:
            starts[-1] = samples - (micro_batch + 1) // 2
    return tuple(zip(starts, [*starts[1:], samples], strict=True)) if starts else ()


def bounds(samples: int, micro_batch: int, avoid_single: bool = True, align: int = 1) -> list[tuple[int, int]]:
    """Return the (start, stop) of every micro-batch of a batch of ``samples``, in order, without gaps.

    Every micro-batch holds ``micro_batch`` samples but the last one, which holds the rest. A rest of one
    sample breaks batch norm, which needs two: with ``avoid_single`` the last two micro-batches are
    balanced instead, or, where ``micro_batch`` is 2, the one joins its neighbour (which then holds 3).

    ``align`` is the size of the groups that a grouped batch norm normalises together: every cut is at a multiple of
    it, and a rest of one joins the micro-batch before it (with ``avoid_single``).

    Raises:
        ValueError: ``samples`` is negative or ``micro_batch`` is below 1.
        BatchError: ``micro_batch`` is no multiple of ``align``, and has to cut.

    >>> bounds(10, 4), bounds(9, 4), bounds(5, 2)
    ([(0, 4), (4, 8), (8, 10)], [(0, 4), (4, 7), (7, 9)], [(0, 2), (2, 5)])
    >>> bounds(9, 4, avoid_single=False)
    [(0, 4), (4, 8), (8, 9)]
    >>> bounds(9, 4, align=2), bounds(2, 2, align=2)
    ([(0, 4), (4, 9)], [(0, 2)])
    """
    if samples < 0 or micro_batch < 1:
        raise ValueError(f"cannot cut {samples} samples into micro-batches of {micro_batch}; give at least 1")
    if micro_batch % align and samples > micro_batch + (align > 1):
        raise BatchError(f"micro_batch={micro_batch} cuts through {says_multiples(micro_batch, align)}")
    return list(_bounds(samples, micro_batch, avoid_single, align))


def parts(samples: int, rank: int, size: int, align: int = 1, rest_of_one: bool = False) -> tuple[int, int]:
    """Return the (start, stop) of a process's part of a whole batch: contiguous, in rank order, as even as can be.

    With ``align`` the parts are cut at its multiples, where a rest of one is not cut off but with ``rest_of_one``.

    >>> [parts(64, rank, 3) for rank in range(3)]
    [(0, 21), (21, 42), (42, 64)]
    >>> [parts(65, rank, 3, align=8) for rank in range(3)]
    [(0, 16), (16, 40), (40, 65)]
    """
    if align == 1:
        return samples * rank // size, samples * (rank + 1) // size
    groups = max(1, samples // align + (samples % align > (not rest_of_one))) if samples else 0
    start, stop = (groups * number // size for number in (rank, rank + 1))
    return min(start * align, samples), samples if stop == groups else stop * align


def worker_edges(samples: int, workers: int, rank: int = 0, size: int = 1) -> tuple[int, ...]:
    """Return where the parts of a process's logical workers begin in a whole batch, and where the last one ends.

    Worker *k* of *K* has the samples from ``samples · k // K`` on, whatever the number of processes; a process has
    whole workers, contiguous ones in rank order, as even as can be.

    >>> worker_edges(10, 4), [worker_edges(10, 4, rank, 3) for rank in range(3)]
    ((0, 2, 5, 7, 10), [(0, 2), (2, 5), (5, 7, 10)])
    """
    first, stop = parts(workers, rank, size)
    return tuple(samples * worker // workers for worker in range(first, stop + 1))


@dataclass(frozen=True)
class Parting:
    """How a whole batch is parted among processes.

    Attributes:
        align: parts are cut at multiples of it.
        rest_of_one: a rest of one sample may be cut off; otherwise it is spared.
        logical: the number of logical workers, whose parts are not cut; None where there are none.
    """

    align: int = 1
    rest_of_one: bool = False
    logical: int | None = None

    def edges(self, samples: int, rank: int, size: int) -> tuple[int, ...]:
        """Return where a process's part begins and ends; with logical workers, where each of theirs does.

        >>> Parting().edges(64, 1, 3), Parting(logical=4).edges(64, 1, 3)
        ((21, 42), (16, 32))
        """
        if self.logical is not None:
            return worker_edges(samples, self.logical, rank, size)
        return parts(samples, rank, size, self.align, self.rest_of_one)


def bounds_between(
    edges: Sequence[int], micro_batch: int | None, align: int = 1, avoid_single: bool = True
) -> list[tuple[int, int]]:
    """Return the micro-batches of each stretch between two edges, one after the other; None is a stretch at once.

    >>> bounds_between((0, 4, 4, 7), 3), bounds_between((0, 5, 8), None)
    ([(0, 2), (2, 4), (4, 7)], [(0, 5), (5, 8)])
    """
    return [
        (begin + start, begin + stop)
        for begin, end in pairwise(edges)
        for start, stop in bounds(end - begin, micro_batch or max(1, end - begin), avoid_single, align)
    ]


def says_multiples(number: int, align: int) -> str:
    """What is said of a number of samples that is no multiple of a group's.

    >>> says_multiples(48, 32)
    'the groups of 32 samples that batch norm normalises together; 32 and 64 are multiples of 32'
    """
    below = number // align * align
    nearest = f"{below} and {below + align} are multiples" if below else f"{align} and {2 * align} are multiples"
    return f"the groups of {align} samples that batch norm normalises together; {nearest} of {align}"
