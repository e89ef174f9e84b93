"""In bitwise mode the whole batch is cut by position, and each process has whole micro-batches of it."""

from __future__ import annotations

from collections.abc import Sequence

from wholebatch.core.errors import BatchError
from wholebatch.sums.order_free import MOST_SUMMANDS


def place_of(counts: Sequence[int], positions: Sequence[int], rank: int, micro_batch: int) -> tuple[int, int]:
    """Return this process's position in the whole batch, and the number of micro-batches of the whole batch.

    Every process finds the same mistakes.

    Args:
        counts: samples of every process.
        positions: what the caller said of every process; -1 for nothing.
        rank: of this process.
        micro_batch: samples of each micro-batch but the last.

    >>> place_of([8, 4, 3], [-1, -1, 12], rank=2, micro_batch=4)
    (12, 4)

    Raises:
        BatchError: a part begins or ends within a micro-batch, or there are more micro-batches than can be added.
    """
    begin = 0
    for number, (samples, position) in enumerate(zip(counts, positions, strict=True)):
        if samples and begin % micro_batch:
            raise BatchError(
                f"the part of process {number} begins at sample {begin} of the whole batch, within a micro-batch of "
                f"{micro_batch}; bitwise=True needs whole micro-batches in every process: parts of a multiple of "
                f"{micro_batch} samples, but for the last one. BatchLoader(…, align={micro_batch}) cuts so, and train "
                "does by itself"
            )
        if samples and position not in (-1, begin):
            raise BatchError(
                f"position={position} in process {number}, but the processes before it have {begin} samples; "
                "bitwise=True needs the whole batch, its parts in rank order"
            )
        begin += samples
    micro_batches = -(-begin // micro_batch)
    if micro_batches > MOST_SUMMANDS:
        raise BatchError(
            f"{begin} samples in micro-batches of {micro_batch} are {micro_batches} of them; bitwise=True adds up to "
            f"{MOST_SUMMANDS}, so take micro_batch={-(-begin // MOST_SUMMANDS)} or more"
        )
    return sum(counts[:rank]), micro_batches
