"""Logical workers: what depends on a number of workers by its nature depends on theirs, not on the processes'.

A whole batch is cut by position into the parts of *K* logical workers (:func:`wholebatch.core.cuts.worker_edges`), and
a process has the parts of some of them, whole ones. An engine that treats each worker's gradient by itself is told,
before each micro-batch, whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from wholebatch.core import tree
from wholebatch.core.cuts import parts, worker_edges
from wholebatch.core.errors import InputError
from wholebatch.core.processes import Processes
from wholebatch.step.engine import Engine
from wholebatch.step.losses import LossCall

FAILED = -2  # in place of a number of samples


@runtime_checkable
class PerWorker(Engine, Protocol):
    """An engine that treats the gradient of each logical worker by itself; ``finish`` is for one process, too."""

    workers: int
    fixed_weight: float | None
    """The weight of a whole batch of a loss that is a sum; None where weights add up. The step says it."""

    @property
    def mode(self) -> str:
        """In words, for the history."""
        ...

    def worker(self, number: int) -> None:
        """Say whose the next micro-batch is."""
        ...

    def collect(self) -> None:
        """Bring the state of all workers to the first process; all processes call it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what the next window depends on: of all workers after ``collect``, else of this process's own."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of this process's own workers."""
        ...


def own_workers(processes: Processes, workers: int) -> range:
    """Return the numbers of this process's logical workers.

    >>> from wholebatch.core.processes import Alone
    >>> own_workers(Alone(), 3)
    range(0, 3)
    """
    return range(*parts(workers, processes.rank, processes.size))


def agree_on_edges(processes: Processes, workers: int, samples: int | None) -> tuple[tuple[int, ...], int, int]:
    """Return where this process's workers' parts begin in its ``samples``, its place in the whole batch, and its size.

    All processes call it; they exchange the counts, and find the same.

    Args:
        processes: who shares the batch.
        workers: how many logical ones.
        samples: of this process; ``FAILED`` where something went wrong before.

    Raises:
        InputError: some process has not the samples of its own workers, or does not know how many it has.
    """
    counts = processes.exchange(-1 if samples is None else samples)
    if FAILED in counts:
        return (), -1, -1
    whole = sum(counts)
    edges = [worker_edges(whole, workers, rank, processes.size) for rank in range(processes.size)]
    due = [each[-1] - each[0] for each in edges]
    if counts != due:
        raise InputError(
            f"the processes gave {counts} samples, but with {workers} logical workers a batch of {whole} has parts of "
            f"{due} samples" + ("; say MicroBatches(…, samples=n)" if -1 in counts else "; wb.train gives these parts")
        )
    own = edges[processes.rank]
    return tuple(edge - own[0] for edge in own), own[0], whole


def by_worker(
    pieces: Iterator[tuple[int, int, Any]],
    edges: Sequence[int],
    first: int,
    tell: Callable[[int], None],
    axis: tree.Axis = 0,
) -> Iterator[tuple[int, int, Any]]:
    """Yield (start, samples, piece), cut at ``edges``, and ``tell`` before each of them whose it is.

    Args:
        pieces: the micro-batches.
        edges: where the parts of the workers ``first``, ``first + 1``, … begin, and where the last one ends.
        first: the first worker's number.
        tell: gets a worker's number.
        axis: the samples'.

    >>> import torch
    >>> for start, samples, piece in by_worker(iter([(0, 3, torch.arange(3))]), (0, 1, 1, 3), 5, print):
    ...     print(start, samples, piece.tolist())
    5
    0 1 [0]
    7
    1 2 [1, 2]
    """
    worker = 0
    for start, samples, piece in pieces:
        begin, stop = start, start + samples
        while begin < stop:
            while edges[worker + 1] <= begin:
                worker += 1
            end = min(stop, edges[worker + 1])
            tell(first + worker)
            whole = end - begin == samples
            yield begin, end - begin, piece if whole else tree.cut(piece, begin - start, end - start, samples, axis)
            begin = end


def per_worker_of(engine: Any, loss: LossCall, align: int, half: bool) -> PerWorker | None:
    """Return the engine, where it treats each logical worker's gradient by itself.

    Raises:
        InputError: a step cannot be made of what each does by itself; the message says why.
    """
    if engine is None or not isinstance(engine, PerWorker):
        return None
    refuse_for_workers(engine.mode, loss.coupled, align, half)
    engine.fixed_weight = loss.whole_weight
    return engine


def refuse_for_workers(mode: str, coupled: bool, align: int, half: bool) -> None:
    """See that a step can be made of what each logical worker does by itself.

    Raises:
        InputError: it cannot; the message says why.
    """
    why = None
    if coupled:
        why = "a WholeBatchLoss couples the samples of all workers"
    elif align > 1:
        why = "a grouped batch norm (convert_batchnorm) normalises samples of several workers together"
    elif half:
        why = "float16 (precision='fp16', or parameters in it) scales gradients by what all workers found"
    if why is not None:
        raise InputError(f"parallel= with {mode} cannot be combined here: {why}; leave one of the two out")
