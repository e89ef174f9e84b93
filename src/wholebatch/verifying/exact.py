"""The exact gradient of a window, and beside it what usual mistakes would make of the same micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.core.errors import BatchError
from wholebatch.core.processes import Processes
from wholebatch.step import losses
from wholebatch.step.unkeyed import unchanged_buffers
from wholebatch.verifying.watch import dense

Vector = list[Tensor]  # a tensor per parameter, float64


@dataclass
class Window:
    """What a window of micro-batches comes to: S_i the gradient of the i-th one's loss sum, w_i its weight.

    Attributes:
        exact: ΣS_i / Σw_i, what one step over the whole batch finds.
        means: ΣS_i / w_i, the sum of the gradients of the micro-batches' means.
        by_samples: Σn_i S_i / w_i / Σn_i, the means weighted by samples.
        last: S_k / w_k, the last micro-batch alone.
        weight: Σw_i; 1 for a loss that is a sum.
        samples: Σn_i.
        pieces: the number of micro-batches, k, on this process.
        processes: among how many processes they are spread.
    """

    exact: Vector
    means: Vector
    by_samples: Vector
    last: Vector
    weight: float = 0.0
    samples: int = 0
    pieces: int = 0
    processes: int = 1
    weights: list[float] = field(default_factory=list)


def exact_window(
    model: nn.Module, loss: Any, pieces: Sequence[Any], parameters: Sequence[Tensor], processes: Processes
) -> Window:
    """Return what ``pieces`` come to at the present weights; ``.grad`` and buffers are as before."""
    bound = losses.bind(loss)
    kept = [parameter.grad for parameter in parameters]
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    try:
        with unchanged_buffers(bare), torch.enable_grad():
            window = _summed(bare, bound, pieces, parameters)
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient
    _over_processes(window, processes)
    total = bound.whole_weight if bound.whole_weight is not None else window.weight
    window.weight = float(total)
    torch._foreach_div_(window.exact, float(total) if total else 1.0)
    torch._foreach_div_(window.by_samples, float(max(window.samples, 1)))
    return window


def _summed(bare: nn.Module, bound: losses.LossCall, pieces: Sequence[Any], parameters: Sequence[Tensor]) -> Window:
    window = Window(_zeros(parameters), _zeros(parameters), _zeros(parameters), _zeros(parameters))
    for given in pieces:
        piece = tree.to_device(bound.cuttable(given), parameters[0].device)
        samples = samples_of(piece)
        for parameter in parameters:
            parameter.grad = None
        loss_sum, weight = bound.summed(bound.forward(bare, piece), piece, window.samples, samples, True)
        if loss_sum.requires_grad:
            loss_sum.backward()
        number = 1.0 if weight is None else float(weight)
        gradients = [torch.zeros_like(p, dtype=torch.float64) if p.grad is None else dense(p.grad) for p in parameters]
        torch._foreach_add_(window.exact, gradients)
        window.last = list(torch._foreach_div(gradients, number)) if number else gradients
        torch._foreach_add_(window.means, window.last)
        torch._foreach_add_(window.by_samples, window.last, alpha=samples)
        window.weight += number
        window.weights.append(number)
        window.samples += samples
        window.pieces += 1
    return window


def _zeros(parameters: Sequence[Tensor]) -> Vector:
    return [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]


def _over_processes(window: Window, processes: Processes) -> None:
    """Add what adds up over the processes; the sum of means over all of them, as if they were one window."""
    if processes.size == 1:
        return
    for vector in (window.exact, window.means, window.by_samples):
        for part in vector:
            processes.sum_(part)
    counts = processes.sum_(torch.tensor([window.weight, window.samples], dtype=torch.float64))
    window.weight, window.samples = float(counts[0]), int(counts[1])
    window.processes = processes.size


def samples_of(piece: Any) -> int:
    """The samples of a micro-batch; 1 where it has no sample axis."""
    try:
        return tree.count(piece)
    except BatchError:
        return 1


def inner(first: Vector, second: Vector) -> float:
    """The inner product of two vectors."""
    return float(sum(float((a * b).sum()) for a, b in zip(first, second, strict=True)))


def norm(vector: Vector) -> float:
    """The 2-norm of a vector."""
    return inner(vector, vector) ** 0.5


def difference(first: Vector, second: Vector) -> float:
    """The 2-norm of ``first - second``."""
    return norm([a - b for a, b in zip(first, second, strict=True)])


def scaled(vector: Vector, factor: float) -> Vector:
    """``vector`` times ``factor``."""
    return [part * factor for part in vector]
