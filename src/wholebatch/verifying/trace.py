"""What a few steps leave, as numbers that tell bits apart: the weights, and what every layer took and gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from wholebatch.core.digest import digest, sum_of_bits
from wholebatch.core.record import Observer, Progress

Bits = tuple[int, ...]  # a number per tensor
_MODEL = "the model"


class Enough(Exception):
    """As many steps were made as were wanted."""


@dataclass
class LayerTrace:
    """One call of one layer; ``name`` has its class, as in "head (Linear)"."""

    name: str
    given: Bits
    gave: Bits


@dataclass
class StepTrace:
    """One step: its micro-batches in the order of the whole batch, each a list of layers in the order they ended."""

    digest: str
    tensors: dict[str, int]
    gradients: dict[str, int]
    passes: list[list[LayerTrace]]
    apart: str = ""  # a weight that the processes do not agree about

    def same_bits(self, other: StepTrace) -> bool:
        """Whether weights and gradients are the same, in all processes."""
        return self.tensors == other.tensors and self.gradients == other.gradients and not (self.apart or other.apart)

    def of(self, name: str) -> tuple[int | None, int | None]:
        """The bits of a weight and of its gradient."""
        return self.tensors.get(name), self.gradients.get(name)


class Tracer(Observer):
    """Traces ``model`` for ``steps`` steps, and raises :class:`Enough`; used as an observer, or by hand."""

    every_process = True

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.steps: list[StepTrace] = []
        self._model, self._wanted = model, steps
        self._passes: list[list[tuple[str, list[Tensor], list[Tensor]]]] = []
        self._entered: list[list[Tensor]] = []
        self._watching = True
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            label = f"{name or _MODEL} ({type(module).__name__})"
            entering = self._entering(module is model)
            self._handles.append(module.register_forward_pre_hook(entering, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._leaving(label), with_kwargs=True))

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def step(self, progress: Progress) -> None:
        """A step was made."""
        self.end_step()
        if len(self.steps) >= self._wanted:
            raise Enough

    def end_step(self) -> None:
        """Read what the step left."""
        state = {name: t for name, t in self._model.state_dict().items() if isinstance(t, Tensor)}
        gradients = {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        numbers = iter(
            _read(
                [
                    *map(sum_of_bits, [*state.values(), *gradients.values()]),
                    *(bits for layers in self._passes for _, given, gave in layers for bits in (*given, *gave)),
                ]
            )
        )
        tensors = {name: next(numbers) for name in state}
        of_gradients = {name: next(numbers) for name in gradients}
        passes = [
            [LayerTrace(name, _taken(numbers, given), _taken(numbers, gave)) for name, given, gave in layers]
            for layers in self._passes
        ]
        self.steps.append(StepTrace(digest(state), tensors, of_gradients, _last_attempt(passes)))
        self._passes, self._entered = [], []

    def _entering(self, outermost: bool) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if outermost:
                self._watching = module.training  # and not evaluated
            if not self._watching:
                return
            if outermost or not self._passes:
                self._passes.append([])
                self._entered = []
            self._entered.append(_bits((args, kwargs)))

        return hook

    def _leaving(self, label: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not self._watching:
                return
            given = self._entered.pop() if self._entered else []
            self._passes[-1].append((label, given, _bits(output)))

        return hook


def _last_attempt(passes: list[list[LayerTrace]]) -> list[list[LayerTrace]]:
    """The passes of a window without those of earlier attempts: a step is made again where a sum's bound has moved."""
    for attempts in (3, 2):
        own = len(passes) // attempts
        given = [_whole(layers) for layers in passes]
        if own * attempts == len(passes) and given == given[:own] * attempts:
            return passes[len(passes) - own :]
    return passes


def _bits(values: Any) -> list[Tensor]:
    with torch.no_grad():
        return [sum_of_bits(leaf) for leaf in _pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _taken(numbers: Iterable[int], like: Sequence[Tensor]) -> Bits:
    source = iter(numbers)
    return tuple(next(source) for _ in like)


def _read(values: Sequence[Tensor]) -> list[int]:
    """The numbers, read with one transfer per device."""
    places: dict[torch.device, list[int]] = {}
    for place, value in enumerate(values):
        places.setdefault(value.device, []).append(place)
    found = [0] * len(values)
    for held in places.values():
        for place, number in zip(held, torch.stack([values[place] for place in held]).tolist(), strict=True):
            found[place] = number
    return found


def together(ranks: Sequence[Sequence[StepTrace]]) -> list[StepTrace]:
    """Return the trace of the whole batch from those of all processes, in rank order."""
    whole = []
    for steps in zip(*ranks, strict=True):
        first = steps[0]
        differing = [
            name for name in first.tensors for other in steps if other.tensors.get(name) != first.tensors[name]
        ]
        passes = [layers for one in steps for layers in one.passes]
        whole.append(StepTrace(first.digest, first.tensors, first.gradients, passes, differing[0] if differing else ""))
    return whole


@dataclass(frozen=True)
class Difference:
    """Where two traces differ first.

    Attributes:
        step: counted from 1.
        where: "data", "layer", "backward", "optimizer" or "processes".
        layer: as in "head (Linear)"; "" where there is none.
        parameter: or a buffer; "" where the weights are still the same.
        micro_batch: counted from 1; None where it is not one of them.
    """

    step: int
    where: str
    layer: str = ""
    parameter: str = ""
    micro_batch: int | None = None

    def __str__(self) -> str:
        place = f"step {self.step}"
        if self.micro_batch is not None:
            place += f", micro-batch {self.micro_batch}"
        parameter = f"; first parameter that differs: {self.parameter}" if self.parameter else ""
        said = {
            "data": "the model is given other samples",
            "layer": f"layer {self.layer} gives another output for the same input",
            "backward": f"every output is the same, but the gradient of layer {self.layer} is another",
            "optimizer": f"every gradient is the same, but layer {self.layer} is changed otherwise",
            "processes": f"the processes do not have the same weights in layer {self.layer}",
        }
        return f"{place}: {said[self.where]}{parameter}"


def first_difference(one: Sequence[StepTrace], other: Sequence[StepTrace], model: nn.Module) -> Difference | None:
    """Return where two traces of ``model`` differ first; None where they do not."""
    for number, (a, b) in enumerate(zip(one, other, strict=True), 1):
        if a.same_bits(b):
            continue
        tensor = next((name for name in {**a.tensors, **a.gradients} if a.of(name) != b.of(name)), "")
        found = _in_passes(a, b)
        if found is not None:
            where, layer, place = found
            return Difference(number, where, layer, tensor, place)
        if a.apart or b.apart:
            name = a.apart or b.apart
            return Difference(number, "processes", _layer_of(model, name), name)
        moved = [name for name in a.gradients if a.gradients[name] != b.gradients.get(name)]
        name = moved[-1] if moved else tensor  # backward goes from the last layer to the first
        return Difference(number, "backward" if moved else "optimizer", _layer_of(model, name), name)
    return None


def _in_passes(a: StepTrace, b: StepTrace) -> tuple[str, str, int] | None:
    for place, (mine, theirs) in enumerate(zip(a.passes, b.passes, strict=False), 1):
        if mine == theirs:
            continue
        if _whole(mine) != _whole(theirs):
            return "data", "", place
        for one, other in zip(mine, theirs, strict=False):
            if one.name != other.name:
                return "layer", mine[-1].name, place  # another way through the model
            if one.given == other.given and one.gave != other.gave:
                return "layer", one.name, place
        return "layer", mine[-1].name if mine else "", place
    return None


def _whole(layers: Sequence[LayerTrace]) -> Bits:
    """What the model itself was given."""
    return next((layer.given for layer in layers if layer.name.startswith(_MODEL)), ())


def _layer_of(model: nn.Module, tensor: str) -> str:
    """The layer that has a parameter or buffer, with its class."""
    path = tensor.rpartition(".")[0]
    modules = dict(model.named_modules())
    return f"{path or _MODEL} ({type(modules[path]).__name__})" if path in modules else tensor
