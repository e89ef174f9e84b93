"""What a tensor group exchanges in a pass, counted on one process that has the whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.core.device import device_of
from wholebatch.parallel.tensor import ways_of
from wholebatch.step.precision import autocast
from wholebatch.step.tensor_group import TensorGroup

_FORWARD = {"rowwise": "sum", "colwise_whole": "gather", "sequence": "gather"}  # of the output
_BACKWARD = {"colwise": "sum", "colwise_whole": "sum", "sequence": "gather"}  # of the input's gradient


def exchanged(model: nn.Module, plan: Any, inputs: Any, size: int, precision: str = "fp32") -> TensorGroup:
    """Return what a group of ``size`` processes exchanges, and the share of the model that it splits.

    One forward on a copy tells, in training mode. Nothing is split, and no other process is needed.

    Args:
        model: what is to be split.
        plan: ``{pattern: way}``, or None for the model's own.
        inputs: of a few samples, what it is called with.
        size: the number of processes.
        precision: of the forward, as for :class:`wholebatch.Step`.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    >>> exchanged(model, {"0": "colwise", "2": "rowwise"}, torch.ones(2, 2), 2)
    TensorGroup(summed=12, gathered=0, sums=1, gathers=0, norms=0, norm_sums=0, split=1.0)

    Raises:
        ConfigError: as :func:`wholebatch.parallel.tensor.ways_of`.
    """
    ways = _linear(ways_of(model, plan, size))
    moved: dict[str, list[int]] = {"sum": [], "gather": []}
    counted = copy.deepcopy(model).train()
    for name, way in ways.items():
        counted.get_submodule(name).register_forward_hook(_counting(way, moved))
    device = device_of(model)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), autocast(precision, device):
        counted(tree.to_device(inputs, device))
    samples = tree.count(inputs)
    norms = [
        _bytes(parameter)
        for name, way in ways.items()
        if way == "sequence"
        for parameter in model.get_submodule(name).parameters()
        if parameter.requires_grad
    ]
    return TensorGroup(
        summed=-(-sum(moved["sum"]) // samples),
        gathered=-(-sum(moved["gather"]) // samples),
        sums=len(moved["sum"]),
        gathers=len(moved["gather"]),
        norms=sum(norms),
        norm_sums=len(norms),
        split=_split_share(model, ways),
    )


def _linear(ways: Mapping[str, str]) -> dict[str, str]:
    """The ways with attention as the two layers of it that are split."""
    found: dict[str, str] = {}
    for name, way in ways.items():
        found |= {f"{name}.qkv": "colwise", f"{name}.out": "rowwise"} if way == "heads" else {name: way}
    return found


def _counting(way: str, moved: Mapping[str, list[int]]) -> Callable[..., None]:
    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if way in _FORWARD:
            moved[_FORWARD[way]].append(_bytes(output))
        if way in _BACKWARD and inputs[0].requires_grad:
            moved[_BACKWARD[way]].append(_bytes(inputs[0]))

    return count


def _split_share(model: nn.Module, ways: Mapping[str, str]) -> float:
    """The share of the parameters' bytes of which every process has a part: a rowwise layer's bias is none."""
    whole = sum(_bytes(parameter) for parameter in model.parameters())
    split = 0
    for name, way in ways.items():
        for own, parameter in model.get_submodule(name).named_parameters():
            split += _bytes(parameter) if way.startswith("colwise") or (way, own) == ("rowwise", "weight") else 0
    return split / whole if whole else 0.0


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
