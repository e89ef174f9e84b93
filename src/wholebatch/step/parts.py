"""Tensors of which every process holds a part: what a step needs to know of torch's ``DTensor``.

Everything elementwise (division, clipping, looking for NaN) works on the own parts; a norm is the root of the sum over
all parts, of which those that several processes hold alike count once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.processes import Processes

SPLIT = "split_by_wholebatch"  # an attribute of a model, of the kind Split
ORDER = "order_of_rows"  # an attribute of a parameter whose rows are dealt out in another order than the whole one's

UNMEASURED = "the model is split over the processes: none has the whole gradient of a micro-batch"  # of the noise scale

_heads: list[
    tuple[int, int]
] = []  # within attention of which this process computes some heads: its number, of how many


@dataclass(frozen=True)
class Split:
    """How a model is split.

    Attributes:
        samples: the processes that share a batch's samples; the others work on the same ones.
        waits: whether a forward waits for the others layer by layer, so that all make as many.
    """

    samples: Processes
    waits: bool


def split_of(model: nn.Module) -> Split | None:
    """Return how a model is split; None where every process has the whole."""
    return getattr(model, SPLIT, None)


def gather(model: nn.Module) -> None:
    """Make every layer of a sharded model whole, in the order of the model; all processes call it."""
    for unit in units_of(model):
        unit.unshard()


def release(model: nn.Module) -> None:
    """Give up what other processes hold of a sharded model; any other is left as it is."""
    for unit in units_of(model):
        unit.reshard()


def units_of(model: nn.Module) -> list[Any]:
    """Return the layers of a sharded model that are gathered by themselves (torch's ``FSDPModule``)."""
    return [module for module in model.modules() if hasattr(module, "set_requires_gradient_sync")]


@contextmanager
def ready_to_evaluate(model: nn.Module) -> Iterator[None]:
    """Let a model run without gradients; all processes begin and end together where it is split.

    Torch's inference mode would leave tensors in a sharded model that no later backward may use.
    """
    split = split_of(model)
    if split is None:
        with torch.inference_mode():
            yield
        return
    with torch.no_grad():
        if not split.waits:
            gather(model)
        try:
            yield
        finally:
            release(model)


def is_part(tensor: Any) -> bool:
    """Return whether ``tensor`` is a ``DTensor``; asking imports nothing."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "placements")


def is_split(model: nn.Module) -> bool:
    """Return whether a process holds parts of the model's parameters alone."""
    return any(is_part(parameter) for parameter in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds, sharing its memory; a plain tensor is itself."""
    if not is_part(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()  # type: ignore[attr-defined]


def whole(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return the whole tensor on the CPU, a new one; all processes call it.

    Args:
        tensor: a parameter, or what an optimizer keeps for it.
        parameter: the parameter.
    """
    if not is_part(tensor):
        return tensor.detach()
    full = tensor.detach().full_tensor().cpu()  # type: ignore[attr-defined]
    order = order_of(tensor, parameter)
    return full if order is None else torch.empty_like(full).index_copy_(0, order, full)


def order_of(tensor: Tensor, parameter: Tensor) -> Tensor | None:
    """Return in which order rows are dealt out; None: as they are, or ``tensor`` has other rows than ``parameter``."""
    return getattr(parameter, ORDER, None) if tensor.shape[:1] == parameter.shape[:1] else None


def part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds of ``parameter``, as a ``DTensor``.

    All of it, where it is shaped otherwise.
    """
    if not is_part(parameter):
        return tensor
    from torch.distributed.tensor import Replicate, distribute_tensor

    order = order_of(tensor, parameter)
    tensor = tensor if order is None else tensor.index_select(0, order.to(tensor.device))
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    placements = parameter.placements  # type: ignore[attr-defined]
    if tensor.shape != parameter.shape:
        placements = [Replicate()] * mesh.ndim
    return distribute_tensor(tensor.to(mesh.device_type), mesh, placements, src_data_rank=None)


def settled(parameters: Sequence[Tensor]) -> None:
    """Give every gradient the placement of its parameter: what torch left as a sum to be made is made."""
    for parameter in parameters:
        gradient = parameter.grad
        if is_part(gradient) and gradient.placements != parameter.placements:  # type: ignore[union-attr, attr-defined]
            parameter.grad = gradient.redistribute(placements=parameter.placements)  # type: ignore[union-attr, attr-defined]


def squares(gradients: Sequence[Tensor], world: int) -> float:
    """Return this process's share of the squared 2-norm: squares of its parts, over how many hold the same ones."""
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(local(gradient)) / math.sqrt(holders(gradient, world)) for gradient in gradients]
    return float(torch.stack([norm.to(torch.float64) for norm in norms]).square().sum())


def holders(tensor: Tensor, world: int) -> float:
    """Return how many of ``world`` processes hold each part of ``tensor``."""
    if not is_part(tensor):
        return world
    mesh, kept = tensor.device_mesh, 1  # type: ignore[attr-defined]
    for dimension, placement in enumerate(tensor.placements):  # type: ignore[attr-defined]
        kept *= mesh.size(dimension) if placement.is_shard() else 1
    return world / kept


def agree(processes: Processes, gradients: Sequence[Tensor], finite: bool) -> tuple[Tensor, bool]:
    """Return the norm of the whole gradient, and whether it is finite everywhere; all processes call it."""
    sums = torch.tensor([squares(gradients, processes.size), float(not finite)], dtype=torch.float64)
    processes.sum_(sums)
    return sums[0].sqrt(), not bool(sums[1])


# draws ------------------------------------------------------------------------------------------------


def with_some_heads(attention: nn.Module, number: int, of: int) -> None:
    """Note, while ``attention`` runs, that it computes the ``number``-th part of its heads, of so many parts."""
    attention.register_forward_pre_hook(lambda *_: _heads.append((number, of)))
    attention.register_forward_hook(lambda *_: _heads.pop() and None, always_call=True)


def some_heads() -> bool:
    """Return whether this is within attention of which this process computes some heads."""
    return bool(_heads)


def whole_shape(lead: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of attention's weights (…, heads, queries, keys) with the heads of all processes."""
    return (*lead[:-3], lead[-3] * _heads[-1][1], *lead[-2:])


def own_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Return the part of a whole mask that belongs to what this process holds of ``x``."""
    if not is_part(x):
        number, of = _heads[-1]
        length = mask.shape[-3] // of
        return mask.narrow(-3, number * length, length)
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = x.device_mesh  # type: ignore[attr-defined]
    placements = [one if one.is_shard() else Replicate() for one in x.placements]  # type: ignore[attr-defined]
    lengths, starts = compute_local_shape_and_global_offset(mask.shape, mesh, placements)
    for axis, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        mask = mask.narrow(axis, start, length)
    return DTensor.from_local(mask.contiguous(), mesh, placements, run_check=False)
