"""Where a pipeline is cut: contiguous stages whose measured times are as equal as can be."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from wholebatch.core import tree
from wholebatch.core.errors import InputError
from wholebatch.parallel.traced import Traced
from wholebatch.step.unkeyed import unchanged_buffers

_REPEATS = 3


def balanced(costs: Sequence[float], groups: int) -> list[int]:
    """Return where each group but the first begins, so that the largest sum of a group is as small as can be.

    >>> balanced([1, 1, 4, 1, 1], 3), balanced([3, 1, 1, 1], 2)
    ([2, 3], [1])
    """
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)

    @functools.cache
    def best(start: int, left: int) -> tuple[float, tuple[int, ...]]:
        if left == 1:
            return sums[-1] - sums[start], ()
        found = []
        for stop in range(start + 1, len(costs) - left + 2):
            rest, cuts = best(stop, left - 1)
            found.append((max(sums[stop] - sums[start], rest), (stop, *cuts)))
        return min(found)

    return list(best(0, groups)[1])


def measured_cuts(traced: Traced, values: Sequence[Any], stages: int) -> list[str]:
    """Return the names of the modules before which to cut, by the time that forward and backward take.

    Args:
        traced: the model.
        values: of one micro-batch, that the first step begins with.
        stages: how many there will be.

    Raises:
        InputError: the model has fewer parts than that.
    """
    places = [0, *traced.candidates()]
    if len(places) < stages:
        raise InputError(
            f"pipeline: {stages} stages, but {type(traced.model).__name__} has {len(places)} parts that run one after "
            "the other; use fewer stages, or name where to cut: cuts=[module, …]"
        )
    costs = _seconds(traced, places, values)
    return [str(traced.steps[places[number]].target) for number in balanced(costs, stages)]


def _seconds(traced: Traced, places: Sequence[int], values: Sequence[Any]) -> list[float]:
    """The time of each part, forward and backward."""
    costs = []
    devices = {tensor.device.index for tensor in traced.model.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), unchanged_buffers(traced.model):
        for start, stop in zip(places, [*places[1:], len(traced.steps)], strict=True):
            part = traced.part(start, stop)
            trained = [tensor for tensor in part.tensors() if isinstance(tensor, nn.Parameter) and tensor.requires_grad]
            times = []
            for _ in range(_REPEATS):
                begun = time.perf_counter()
                left = _forward_and_backward(part, values, trained)
                if devices:
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - begun)
            costs.append(min(times))
            values = left
    return costs


def _forward_and_backward(part: Any, values: Sequence[Any], trained: Sequence[Tensor]) -> Any:
    entering = pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), list(values))
    leaves = [leaf for leaf in pytree.tree_leaves(entering) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    left = part(pytree.tree_map_only(Tensor, torch.clone, entering))
    outputs = [leaf for leaf in pytree.tree_leaves(left) if isinstance(leaf, Tensor) and leaf.requires_grad]
    wanted = [*leaves, *trained]
    if outputs and wanted:
        torch.autograd.grad([output.float().sum() for output in outputs], wanted, allow_unused=True)
    return pytree.tree_map_only(Tensor, torch.detach, left)


def crossing_bytes(model: nn.Module, inputs: Any, stages: int) -> int:
    """Return the largest number of bytes a sample that cross between the stages, cut by measured time.

    Args:
        model: what is cut.
        inputs: of a few samples, what it is called with.
        stages: how many.

    Raises:
        InputError: it cannot be cut so often.
    """
    traced = Traced(model, (inputs,), {})
    values = traced.values((inputs,), {})
    places = [0, *(traced.place_of(name) for name in measured_cuts(traced, values, stages))]
    found = 0
    with torch.no_grad(), torch.random.fork_rng(devices=[]), unchanged_buffers(model):
        for start, stop in itertools.pairwise(places):
            values = traced.part(start, stop)(values)
            tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
            found = max(found, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
    return -(-found // tree.count(inputs))
