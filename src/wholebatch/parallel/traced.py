"""A model's forward as a list of steps that can be cut anywhere: its graph by ``torch.fx``.

Only the outer forward is looked into: ``nn.Sequential``, and modules that hold a place to cut at. Every other module is
one step, called as it is. Parameters that the outer forward uses itself are fetched by every stage that needs them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from wholebatch.core.errors import InputError, nearest


class Traced:
    """The steps of ``model(*args, **kwargs)`` in their order.

    Args:
        model: any module whose outer forward does not branch on values.
        args: what it is called with; sizes of other calls may differ in the samples' axis.
        kwargs: likewise.
        cuts: names of modules, before each of which there will be a cut.

    Raises:
        InputError: the outer forward cannot be read, or a name is of no module.
    """

    def __init__(
        self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], cuts: Sequence[str] = ()
    ) -> None:
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in cuts:
            if name not in modules or not name:
                raise InputError(f"cuts: the model has no module {name!r}{nearest(name, list(modules))}")
        self.model = model
        self._names = {id(function): name for name, function in vars(F).items() if callable(function)}
        given, self._fixed = _bound(model, args, kwargs)
        graph = _graph(model, given, self._fixed, {name for cut in cuts for name in _ancestors(cut)})
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.inputs = [node for node in inputs if str(node.target).lstrip("*") in given]
        left_out = {node for node in inputs if node not in self.inputs}
        checks = _users(left_out)  # fx asserts that these are their defaults
        self.fetched = {node for node in graph.nodes if node.op == "get_attr"}
        done = {"placeholder", "get_attr", "output"}
        self.steps = [node for node in graph.nodes if node.op not in done and node not in checks]
        self.output = next(node for node in graph.nodes if node.op == "output")

    def values(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Return what the first stage begins with.

        Raises:
            InputError: a number or a flag is another one than when the model was traced.
        """
        given, fixed = _bound(self.model, args, kwargs)
        if fixed != self._fixed or given.keys() != {str(node.target).lstrip("*") for node in self.inputs}:
            raise InputError(
                f"the model is called with {fixed or 'nothing but tensors'} where it was {self._fixed or 'nothing'}; "
                "in a pipeline every micro-batch is called alike"
            )
        return [given[str(node.target).lstrip("*")] for node in self.inputs]

    def place_of(self, name: str) -> int:
        """Return the number of the first step of the module ``name``.

        Raises:
            InputError: the forward does not call it.
        """
        for number, step in enumerate(self.steps):
            if step.op == "call_module" and (str(step.target) + ".").startswith(name + "."):
                return number
        raise InputError(f"cuts: the model's forward does not call {name!r}; name a module that it calls")

    def candidates(self) -> list[int]:
        """Return the steps before which as few values cross as anywhere; each is the call of a module."""
        calls = [number for number, step in enumerate(self.steps) if number and step.op == "call_module"]
        widths = {number: len(self.crossing(number)) for number in calls}
        return [number for number in calls if widths[number] == min(widths.values())]

    def crossing(self, place: int) -> list[fx.Node]:
        """Return the steps and inputs before ``place`` whose values are used from there on."""
        before = [*self.inputs, *self.steps[:place]]
        after = {*self.steps[place:], self.output}
        return [node for node in before if any(user in after for user in node.users)]

    def part(self, start: int, stop: int) -> Part:
        """Return the steps ``start … stop``."""
        return Part(self, start, stop)

    def call(self, step: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """Run one step."""
        args, kwargs = self.look_up((step.args, step.kwargs), known)
        if step.op == "call_module":
            return self.model.get_submodule(str(step.target))(*args, **kwargs)
        if step.op == "call_method":
            return getattr(args[0], str(step.target))(*args[1:], **kwargs)
        name = self._names.get(id(step.target))  # dropout is another one while a step runs
        function: Any = step.target if name is None else getattr(F, name)
        return function(*args, **kwargs)

    def look_up(self, nested: Any, known: dict[fx.Node, Any]) -> Any:
        """Return ``nested`` with values in place of nodes."""

        def value(node: fx.Node) -> Any:
            return self.attribute(node) if node in self.fetched else known[node]

        return fx.node.map_arg(nested, value)

    def attribute(self, node: fx.Node) -> Any:
        """Return the parameter or buffer that a node fetches."""
        found: Any = self.model
        for name in str(node.target).split("."):
            found = getattr(found, name)
        return found


class Part:
    """Some steps of a model, from the values that come in to those that leave, or to its output."""

    def __init__(self, traced: Traced, start: int, stop: int) -> None:
        self._traced = traced
        self._steps = traced.steps[start:stop]
        self._last = stop == len(traced.steps)
        self._enter = traced.crossing(start) if start else traced.inputs
        self._leave = [] if self._last else traced.crossing(stop)

    def __call__(self, values: Sequence[Any]) -> Any:
        """Return the list of values that leave, or the model's output."""
        known = dict(zip(self._enter, values, strict=True))
        for step in self._steps:
            known[step] = self._traced.call(step, known)
        if self._last:
            return self._traced.look_up(self._traced.output.args[0], known)
        return [known[node] for node in self._leave]

    def modules(self) -> list[nn.Module]:
        """Return the modules that it calls."""
        names = dict.fromkeys(str(step.target) for step in self._steps if step.op == "call_module")
        return [self._traced.model.get_submodule(name) for name in names]

    def tensors(self) -> list[Tensor]:
        """Return its parameters and buffers, each once."""
        found: dict[int, Tensor] = {}
        for module in self.modules():
            found |= {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        used = {node for step in self._steps for node in step.all_input_nodes}
        used |= set(self._traced.output.all_input_nodes) if self._last else set()
        for node in used & self._traced.fetched:
            value = self._traced.attribute(node)
            if isinstance(value, Tensor):
                found[id(value)] = value
        return list(found.values())


class _Tracer(fx.Tracer):
    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self._opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, nn.Sequential) and module_qualified_name not in self._opened


def _users(nodes: set[fx.Node]) -> set[fx.Node]:
    """All that depends on ``nodes``."""
    found: set[fx.Node] = set()
    while nodes:
        nodes = {user for node in nodes for user in node.users} - found
        found |= nodes
    return found


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _bound(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each parameter of forward is given: what holds tensors, and all else, defaults included."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    given = dict(bound.arguments)
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given.pop(name, None)
            if bound.kwargs.keys() - given.keys():
                raise InputError("a pipeline's model is called with **kwargs; name its arguments in forward")
        elif parameter.default is not inspect.Parameter.empty:
            given.setdefault(name, parameter.default)
    fixed = {name: value for name, value in given.items() if not _holds_tensor(value)}
    return {name: value for name, value in given.items() if name not in fixed}, fixed


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _graph(model: nn.Module, given: Mapping[str, Any], fixed: Mapping[str, Any], opened: set[str]) -> fx.Graph:
    try:
        with torch.no_grad():
            return _Tracer(opened).trace(model, concrete_args=dict(fixed) or None)
    except Exception as error:
        reason = " ".join(str(error).split()[:40])
        raise InputError(
            f"the forward of {type(model).__name__} cannot be cut into stages: {reason}. Its outer forward must not "
            "depend on values: write it as an nn.Sequential, or move what branches into a module of its own"
        ) from error
