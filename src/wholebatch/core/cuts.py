"""Where a batch is cut into micro-batches."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=256)
def _bounds(samples: int, micro_batch: int, avoid_single: bool) -> tuple[tuple[int, int], ...]:
    starts = list(range(0, samples, micro_batch))
    if avoid_single and micro_batch > 1 and len(starts) > 1 and samples - starts[-1] == 1:
        if micro_batch == 2:
            starts.pop()
        else:
            starts[-1] = samples - (micro_batch + 1) // 2
    return tuple(zip(starts, [*starts[1:], samples], strict=True)) if starts else ()


def bounds(samples: int, micro_batch: int, avoid_single: bool = True) -> list[tuple[int, int]]:
    """Return the (start, stop) of every micro-batch of a batch of ``samples``, in order, without gaps.

    Every micro-batch holds ``micro_batch`` samples but the last one, which holds the rest. A rest of one
    sample breaks batch norm, which needs two: with ``avoid_single`` the last two micro-batches are
    balanced instead, or, where ``micro_batch`` is 2, the one joins its neighbour (which then holds 3).

    Raises:
        ValueError: ``samples`` is negative or ``micro_batch`` is below 1.

    >>> bounds(10, 4), bounds(9, 4), bounds(5, 2)
    ([(0, 4), (4, 8), (8, 10)], [(0, 4), (4, 7), (7, 9)], [(0, 2), (2, 5)])
    >>> bounds(9, 4, avoid_single=False)
    [(0, 4), (4, 8), (8, 9)]
    """
    if samples < 0 or micro_batch < 1:
        raise ValueError(f"cannot cut {samples} samples into micro-batches of {micro_batch}; give at least 1")
    return list(_bounds(samples, micro_batch, avoid_single))
