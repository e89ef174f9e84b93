"""Layers split over processes that work on the same samples, by torch's ``parallelize_module`` and a plan.

A plan is data: names of layers, with ``*`` for one part of a name, and the way each is split. Every layer of a plan
takes whole tensors and gives whole tensors but for what stands between "colwise" and "rowwise": a ``DTensor`` of which
every process holds some columns, so that what comes between (activations, dropout) sees the whole's indices. What a
plan does not name is computed on every process alike. Weights are made whole, once, and then split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.errors import ConfigError, nearest
from wholebatch.core.processes import Processes
from wholebatch.parallel.mesh import Mesh
from wholebatch.step.over_processes import Totals, add_totals, kind_of, same_start, sum_gradients
from wholebatch.step.parts import ORDER, SPLIT, Split, local, settled, with_some_heads

WAYS = {
    "colwise": "a linear layer or embedding, split along its outputs, which stay split (a DTensor)",
    "colwise_whole": "the same, its output made whole",
    "rowwise": "a linear layer split along its inputs, which come split from a colwise one; its output is whole",
    "sequence": "a norm of tokens: (samples, tokens, width), every process some tokens; its output is whole",
    "heads": "self-attention with the layers qkv and out, and heads: every process some of the heads",
}


class TensorEngine:
    """Sums gradients of a model split by a plan (:class:`wholebatch.step.engine.Engine`); made, it has split it."""

    overlaps = False
    lockstep = True
    stands_in = False

    def __init__(self, mesh: Mesh, model: nn.Module, plan: Any = None) -> None:
        self.processes, self.mesh = mesh.samples, mesh
        self.world: Processes | None = mesh.world
        ways = ways_of(model, plan, mesh.layout.tensor)
        same_start(mesh.world, [*model.named_parameters(), *model.named_buffers()])
        before = dict(model.named_parameters())
        split(model, ways, mesh["tensor"])
        after = dict(model.named_parameters())
        self.moved = {id(p): (p, after[name]) for name, p in before.items() if after[name] is not p}
        setattr(model, SPLIT, Split(mesh.samples, waits=False))
        self._counts = mesh.layout.place(mesh.world.rank)["tensor"] == 0
        self._parameters: Sequence[Tensor] = ()

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; no parameter has a gradient."""
        self._parameters = parameters

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Run backward, which waits for the processes that work on the same samples."""
        torch.autograd.backward((loss_sum,), (upstream,))

    def own_norm(self) -> Tensor | None:
        """None: what there is are parts."""
        return None

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Sum the totals, of each sample once, then the gradients over the processes with different samples."""
        settled(self._parameters)
        kinds = [kind_of(parameter.grad) for parameter in self._parameters]
        nothing = replace(own, loss=0.0, weight=0.0, samples=0, micro_batches=0, small=0.0, first=0.0, firsts=0.0)
        whole, kinds = add_totals(self.mesh.world, own if self._counts else nothing, kinds, error)
        if self.processes.size == 1:
            return whole
        held = []
        for parameter, kind in zip(self._parameters, kinds, strict=True):
            if kind != "none" and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            holder = local(parameter).detach()
            holder.grad = None if parameter.grad is None else local(parameter.grad)
            held.append(holder)
        sum_gradients(self.processes, held, kinds)
        return whole


def ways_of(model: nn.Module, plan: Any, size: int) -> dict[str, str]:
    """Return the way of every layer that ``plan`` names.

    Args:
        model: what is to be split.
        plan: ``{pattern: way}``, or None for the model's own: its attribute ``tensor_plan``.
        size: the number of processes it is split over.

    >>> ways_of(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), {"0": "colwise", "2": "rowwise"}, 2)
    {'0': 'colwise', '2': 'rowwise'}

    Raises:
        ConfigError: a pattern that names no layer (the nearest are named), or a way that is none or does not fit.
    """
    plan = getattr(model, "tensor_plan", None) if plan is None else plan
    if not isinstance(plan, Mapping) or not plan:
        raise ConfigError(
            f"parallel: tensor={size} needs a plan for {type(model).__name__}, which has none of its own: "
            'plan={"layers.*.mlp.fc1": "colwise", "layers.*.mlp.fc2": "rowwise"}'
        )
    layers = dict(model.named_modules())
    found: dict[str, str] = {}
    for pattern, way in plan.items():
        if way is None:
            raise ConfigError(
                f"parallel: plan: {pattern!r} has no way; write {{pattern: way}}, with a space behind the colon"
            )
        if way not in WAYS:
            hint = nearest(str(way), WAYS) or f"; there are {', '.join(WAYS)}"
            raise ConfigError(f"parallel: plan: {pattern}: there is no way {way!r}{hint}")
        names = [name for name in layers if name and _fits(name, str(pattern))]
        if not names:
            raise ConfigError(
                f"parallel: plan: {pattern!r} names no layer of {type(model).__name__}{_near(pattern, layers)}"
            )
        for name in names:
            _check(name, layers[name], str(way), size)
            found[name] = str(way)
    _check_untied(model, found)
    return found


def _fits(name: str, pattern: str) -> bool:
    """Whether every part of a name fits its part of the pattern."""
    own, asked = name.split("."), pattern.split(".")
    return len(own) == len(asked) and all(map(fnmatchcase, own, asked))


def _near(pattern: Any, layers: Mapping[str, nn.Module]) -> str:
    """The names most like the pattern, numbers written as ``*``."""
    named = {".".join("*" if part.isdigit() else part for part in name.split(".")) for name in layers if name}
    if hint := nearest(str(pattern), named):
        return hint
    with_weights = {".".join("*" if p.isdigit() else p for p in n.split(".")) for n, one in layers.items() if _own(one)}
    return f"; it has {', '.join(sorted(with_weights)[:8])}"


def _own(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters(recurse=False))


def _check(name: str, layer: nn.Module, way: str, size: int) -> None:
    """Refuse a way that does not fit a layer."""
    kind = type(layer).__name__
    what = f"parallel: plan: {name}: {way}"
    if way.startswith("colwise") and not isinstance(layer, nn.Linear | nn.Embedding):
        raise ConfigError(f"{what} is for linear layers and embeddings; this is a {kind}")
    if way == "rowwise" and not isinstance(layer, nn.Linear):
        raise ConfigError(f"{what} is for linear layers; this is a {kind}")
    if way == "sequence" and not isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        raise ConfigError(f"{what} is for layer norms; this is a {kind}")
    if way == "heads":
        if not all(hasattr(layer, part) for part in ("heads", "qkv", "out")):
            raise ConfigError(f"{what} is for attention with heads, qkv and out; this is a {kind}")
        if layer.heads % size:  # type: ignore[operator]
            raise ConfigError(f"{what}: {layer.heads} heads cannot be shared by {size} processes alike")


def _check_untied(model: nn.Module, ways: Mapping[str, str]) -> None:
    """Refuse to split a weight that a layer shares with another one, since it would be torn from it."""
    users: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), []).append(name)
    for names in users.values():
        for layer in ways:
            split_here = [name for name in names if name.startswith(f"{layer}.")]
            if split_here and len(names) > 1:
                others = ", ".join(name for name in names if name != split_here[0])
                raise ConfigError(
                    f"parallel: plan: {layer} cannot be split: its {split_here[0]} is tied to {others}; leave it out"
                )


def split(model: nn.Module, ways: Mapping[str, str], devices: Any) -> None:
    """Split the layers in place, every process keeping its part of the weights that it has now."""
    from torch.distributed.tensor.parallel import parallelize_module

    for name, way in ways.items():
        layer = model.get_submodule(name)
        if way == "heads":
            _split_heads(layer, devices)
        else:
            parallelize_module(layer, devices, _style(way), src_data_rank=None)


def _style(way: str) -> Any:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    if way == "colwise":
        return ColwiseParallel(use_local_output=False)
    if way == "colwise_whole":
        return ColwiseParallel(output_layouts=Replicate())
    if way == "rowwise":
        return RowwiseParallel()
    return _sequence()


def _sequence() -> Any:
    """Torch's ``SequenceParallel`` takes a plain tensor for some tokens; this one cuts a whole one, and joins again."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
    from torch.distributed.tensor.parallel import ParallelStyle

    class Sequence(ParallelStyle):
        def _apply(self, module: nn.Module, device_mesh: Any) -> nn.Module:
            def cut(_: Any, inputs: Any, mesh: Any) -> Any:
                x = inputs[0]
                whole = x if isinstance(x, DTensor) else DTensor.from_local(x, mesh, [Replicate()], run_check=False)
                return whole.redistribute(placements=[Shard(1)])

            def join(_: Any, output: Any, mesh: Any) -> Any:
                return output.redistribute(placements=[Replicate()]).to_local()

            return distribute_module(module, device_mesh, None, cut, join)

    return Sequence()


def _split_heads(attention: Any, devices: Any) -> None:
    """Give every process the rows of queries, keys and values of its heads, and the columns that take their output."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    size, number = devices.size(), devices.get_local_rank()
    order = torch.arange(attention.qkv.out_features).view(3, size, -1).transpose(0, 1).reshape(-1)
    with torch.no_grad():
        for parameter in attention.qkv.parameters():
            parameter.copy_(parameter[order.to(parameter.device)])
    parallelize_module(attention, devices, {"qkv": ColwiseParallel(), "out": RowwiseParallel()}, src_data_rank=None)
    for parameter in attention.qkv.parameters():
        setattr(parameter, ORDER, order)
    with_some_heads(attention, number, size)
