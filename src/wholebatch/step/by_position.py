"""In bitwise mode the whole batch is cut by position, and each process has whole micro-batches of it."""

from __future__ import annotations

from collections.abc import Sequence

from wholebatch.core.errors import BatchError
from wholebatch.sums.order_free import MOST_SUMMANDS


def place_of(counts: Sequence[int], rank: int, position: int | None, micro_batch: int) -> tuple[int, int]:
    """Return this process's position in the whole batch, and the number of micro-batches of the whole batch.

    Every process finds the same mistakes, but for its own ``position``.

    Args:
        counts: samples of every process.
        rank: of this process.
        position: what the caller says of this process; None for nothing.
        micro_batch: samples of each micro-batch but the last.

    >>> place_of([8, 4, 3], rank=2, position=None, micro_batch=4)
    (12, 4)

    Raises:
        BatchError: a part begins or ends within a micro-batch, or there are more micro-batches than can be added.
    """
    before = sum(counts[:rank])
    begin = 0
    for number, samples in enumerate(counts):
        if samples and begin % micro_batch:
            raise BatchError(
                f"the part of process {number} begins at sample {begin} of the whole batch, within a micro-batch of "
                f"{micro_batch}; bitwise=True needs whole micro-batches in every process: parts of a multiple of "
                f"{micro_batch} samples, but for the last one. BatchLoader(…, align={micro_batch}) cuts so, and train "
                "does by itself"
            )
        begin += samples
    if position is not None and len(counts) > 1 and position != before and counts[rank]:
        raise BatchError(
            f"position={position}, but the parts of the processes before this one hold {before} samples; bitwise=True "
            "takes the parts in rank order"
        )
    if position is not None and len(counts) == 1 and position:
        raise BatchError(f"position={position} on one process: bitwise=True needs the whole batch, from sample 0 on")
    micro_batches = -(-begin // micro_batch)
    if micro_batches > MOST_SUMMANDS:
        raise BatchError(
            f"{begin} samples in micro-batches of {micro_batch} are {micro_batches} of them; bitwise=True adds up to "
            f"{MOST_SUMMANDS}, so take micro_batch={-(-begin // MOST_SUMMANDS)} or more"
        )
    return before, micro_batches
