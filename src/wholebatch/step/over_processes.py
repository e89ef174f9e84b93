"""A window's sums over all processes: counts and flags in float64, and the gradients in their own dtype.

The buffer of the former is float64, since counts in float32 break at 2^24. It holds a flag per parameter that says
whether this process has a gradient for it (without, a parameter that is used nowhere would get a gradient of zeros,
and so decay, on several processes and not on one), and a flag that says whether this process failed, so that
every process raises and none waits for ever.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from wholebatch.core.errors import InputError
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Processes
from wholebatch.step.redo import RanOut

# Gradients travel in buckets of this size: while one is under way the next is gathered.
BUCKET_BYTES = 8 << 20
# One as large as this travels by itself, from where it is: gathering it would cost more than a collective does.
ALONE_BYTES = 1 << 20

_FLAGS = {"none": 0.0, "dense": 1.0, "sparse": 1.0}  # a dense one adds the number of processes, so that sums tell


def same_start(processes: Processes, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Make parameters and buffers on all processes those of rank 0.

    Raises:
        InputError: the processes have different models; the message names the first difference.
    """
    if processes.size == 1:
        return
    own = [f"{name} {str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}" for name, tensor in tensors]
    if len(set(processes.exchange(zlib.crc32(repr(own).encode())))) > 1:
        everyones = processes.gather(own)
        for rank, other in enumerate(everyones):
            for mine, theirs in zip_longest(everyones[0], other, fillvalue="nothing"):
                if mine != theirs:
                    raise InputError(
                        f"the processes have different models: process 0 has {mine} where process {rank} has {theirs}; "
                        "make the same model, in the same order, in every process"
                    )
    for _, tensor in tensors:
        processes.copy_from_first_(tensor)


@dataclass
class Totals:
    """What a window comes to, on this process or on all of them.

    ``small``, ``first`` and ``firsts`` are of the first micro-batches, one of each process: b · |g|² of the mean
    gradient of its b samples, b, and 1. Where nothing is measured they are 0.

    ``each`` are the loss and the weight of every micro-batch, for an engine that ``sums_alone``.
    """

    loss: float
    weight: float
    samples: int
    micro_batches: int
    small: float = 0.0
    first: float = 0.0
    firsts: float = 0.0
    each: Sequence[tuple[float, float]] = ()


def add_totals(
    processes: Processes, own: Totals, kinds: Sequence[str], error: BaseException | None
) -> tuple[Totals, list[str]]:
    """Return the totals of all processes, and of what kind the gradient of each parameter is over all of them.

    The kinds are "none", "dense" and "sparse"; ``kinds`` are this process's own (:func:`kind_of`). What is dense in
    one process is dense in the sum.

    Raises:
        PeerError: another process failed; this one's own ``error`` is raised where it has one.
        RanOut: nobody failed otherwise, but memory ran out on some process.
    """
    return begin_totals(processes, own, kinds, error)()


def begin_totals(
    processes: Processes, own: Totals, kinds: Sequence[str], error: BaseException | None
) -> Callable[[], tuple[Totals, list[str]]]:
    """Begin :func:`add_totals`; what is returned waits for it, and returns and raises as it does."""
    flags = [_FLAGS[kind] + processes.size * (kind == "dense") for kind in kinds]
    short = isinstance(error, RanOut)
    wrong = [float(error is not None and not short), float(short)]
    sums = [own.loss, own.weight, own.samples, own.micro_batches, own.small, own.first, own.firsts]
    buffer = torch.tensor([*sums, *wrong, *flags], dtype=torch.float64)
    pending = processes.begin_sum_(buffer)

    def totals() -> tuple[Totals, list[str]]:
        pending.wait()
        loss, weight, samples, micro_batches, small, first, firsts, failed, ran_out, *counts = buffer.tolist()
        if failed:
            raise_together(processes, None if short else error)
        if ran_out:
            raise error if error is not None else RanOut
        whole = Totals(loss, weight, int(samples), int(micro_batches), small, first, firsts)
        return whole, [_kind(count, processes.size) for count in counts]

    return totals


def kind_of(gradient: Tensor | None) -> str:
    """Return "none", "dense" or "sparse"."""
    return "none" if gradient is None else "sparse" if gradient.is_sparse else "dense"


def _kind(flags: float, size: int) -> str:
    return "none" if flags == 0 else "dense" if flags > size else "sparse"


def sum_gradients(processes: Processes, parameters: Sequence[Tensor], kinds: Sequence[str]) -> None:
    """Make the gradients their sums over all processes; one that is of another kind here, or missing, is made one."""
    sums = begin_gradients(processes, parameters, kinds)
    for parameter, kind in zip(parameters, kinds, strict=True):
        if kind == "sparse":
            own = _zeros(parameter).to_sparse(1) if parameter.grad is None else parameter.grad
            parameter.grad = _sum_sparse(processes, own)
    for parameter, total in zip(parameters, sums(), strict=True):
        if total is not None:
            parameter.grad = total


def begin_gradients(
    processes: Processes, parameters: Sequence[Tensor], kinds: Sequence[str]
) -> Callable[[], list[Tensor | None]]:
    """Begin to add the gradients of kind "dense" over all processes, in place where this process has a dense one.

    Returns:
        What waits for the sums and returns them, None for the gradients of other kinds. ``.grad`` itself stays.
    """
    sums = [_dense(parameter) if kind == "dense" else None for parameter, kind in zip(parameters, kinds, strict=True)]
    under_way = []
    for bucket in _buckets([one for one in sums if one is not None]):
        flat = bucket[0].view(-1) if len(bucket) == 1 and bucket[0].is_contiguous() else _flat(bucket)
        under_way.append((processes.begin_sum_(flat), flat, bucket))

    def summed() -> list[Tensor | None]:
        for pending, flat, bucket in under_way:
            pending.wait()
            if flat.data_ptr() != bucket[0].data_ptr():
                torch._foreach_copy_(bucket, _views(flat, bucket))
        return sums

    return summed


def _dense(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    return _zeros(parameter) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=parameter.grad_dtype or parameter.dtype)


def _buckets(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group gradients of one dtype and device, in order, into buckets; large ones first, each by itself."""
    buckets = [[gradient] for gradient in gradients if gradient.nbytes >= ALONE_BYTES]
    sizes: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], int]] = {}
    for gradient in gradients:
        kind, size = (gradient.dtype, gradient.device), gradient.nbytes
        if size >= ALONE_BYTES:
            continue
        bucket, filled = sizes.get(kind, ([], BUCKET_BYTES))
        if filled + size > BUCKET_BYTES:
            bucket, filled = [], 0
            buckets.append(bucket)
        bucket.append(gradient)
        sizes[kind] = (bucket, filled + size)
    return buckets


def _flat(bucket: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in bucket])


def _views(flat: Tensor, bucket: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([gradient.numel() for gradient in bucket])
    return [part.view(gradient.shape) for part, gradient in zip(parts, bucket, strict=True)]


def _sum_sparse(processes: Processes, gradient: Tensor) -> Tensor:
    """Sparse gradients are gathered row by row; coalescing adds them."""
    own = gradient.coalesce()
    parts = processes.gather((own.indices().cpu(), own.values().cpu()))
    indices = torch.cat([part[0] for part in parts], 1).to(own.device)
    values = torch.cat([part[1] for part in parts]).to(own.device)
    return torch.sparse_coo_tensor(indices, values, own.shape, check_invariants=False).coalesce()
