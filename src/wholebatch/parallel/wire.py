"""Adding rows of logical workers over processes in the workers' order, in as many bytes as the rows have.

An all-reduce adds in an order that depends on the number of processes, and it can only add what it sends. Here every
process owns a slice of the elements: all rows of its slice come to it as they are, it adds them as it likes, and
gives its slice of the result to all. With as many processes as workers that is what a ring all-reduce sends,
2 · (P - 1) / P of a row by each process; and what is sent may be compressed, both times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from wholebatch.core.cuts import parts
from wholebatch.core.processes import Processes


def to_owners(processes: Processes, rows: Tensor, workers: int) -> Tensor:
    """Return this process's slice of the rows of all workers, in their order: (workers, elements of a slice).

    Args:
        processes: all of them call it.
        rows: those of this process's own workers: (own workers, elements), of any dtype.
        workers: how many there are.
    """
    size = processes.size
    if size == 1:
        return rows
    rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size))  # equal slices
    width = rows.shape[1] // size
    sent = rows.unflatten(1, (size, width)).transpose(0, 1).contiguous().to(_device(processes)).view(-1)
    received = sent.new_empty(workers * width)
    counts = [len(range(*parts(workers, rank, size))) * width for rank in range(size)]
    scale = sent.element_size()
    distributed.all_to_all_single(
        received.view(torch.uint8),
        sent.view(torch.uint8),
        [count * scale for count in counts],
        [len(rows) * width * scale] * size,
        group=processes.group,
    )
    return received.view(workers, width).to(rows.device)


def from_owners(processes: Processes, part: Tensor, elements: int) -> Tensor:
    """Return all ``elements`` of a row that each process has its slice of."""
    if processes.size == 1:
        return part
    sent = part.contiguous().to(_device(processes))
    whole = sent.new_empty(processes.size * sent.numel())
    slices = list(whole.view(torch.uint8).chunk(processes.size))
    distributed.all_gather(slices, sent.view(torch.uint8), group=processes.group)
    return whole[:elements].to(part.device)


def sum_in_order(processes: Processes, rows: Tensor, workers: int) -> Tensor:
    """Return the sum of the rows of all workers, added in their order: the same bits on any number of processes."""
    total = None
    for row in to_owners(processes, rows, workers):
        total = row.clone() if total is None else total.add_(row)
    assert total is not None
    return from_owners(processes, total, rows.shape[1])


def to_first(processes: Processes, item: Any) -> list[Any] | None:
    """Return every process's ``item`` (picklable) on the first process, in rank order; None on the others."""
    if processes.size == 1:
        return [item]
    items: list[Any] | None = [None] * processes.size if processes.rank == 0 else None
    distributed.gather_object(item, items, group=processes.group, group_dst=0)
    return items


def _device(processes: Processes) -> torch.device:
    """Where the group's backend sends from."""
    on_gpu = str(distributed.get_backend(processes.group)) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
