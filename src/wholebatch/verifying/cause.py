"""Why bits differ: one micro-batch is run twice on one model, and what moved beside torch's generators is named."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.core.digest import sum_of_bits
from wholebatch.step import losses
from wholebatch.step.unkeyed import unchanged_buffers
from wholebatch.verifying.trace import Difference, Tracer

_UNKEYED = "which no key covers; draw with torch's functions, whose generators a bitwise step seeds"
_KERNEL = "a kernel that is not deterministic"
_OF_MODULES = frozenset(vars(nn.Module()))  # what every module has: parameters, hooks, the mode


def likely_cause(model: nn.Module, loss: Any, batch: Any, found: Difference) -> str:
    """Say what probably made the difference ``found``, by running ``batch``, a micro-batch, twice.

    Torch's generators and the buffers are left as they were found; what ``model`` keeps in Python is not.
    """
    if found.where == "data":
        return (
            "the data set gives other samples in another process, although reading twice in one gives the same: "
            "something that depends on the process, such as its number, the time, or the order of a set"
        )
    bound = losses.bind(loss)
    moved = _Moved()
    tracer = Tracer(model, steps=2)
    gradients = []
    try:
        with unchanged_buffers(model), moved.watching(model), torch.random.fork_rng(devices=_devices(model)):
            for _ in range(2):
                torch.manual_seed(0)
                gradients.append(_gradients(model, bound, batch))
                tracer.end_step()
    except Exception as error:  # it runs in a step; the probe is a little less
        return f"not found: the micro-batch cannot be run by itself ({type(error).__name__}: {error})"
    finally:
        tracer.close()
    if moved.said:
        return "; ".join(moved.said)
    outputs = zip(*(step.passes for step in tracer.steps), strict=True)
    for mine, theirs in outputs:
        for one, other in zip(mine, theirs, strict=False):
            if one.given == other.given and one.gave != other.gave:
                return (
                    f"{one.name} gives another output when it is run again with the same input and seeds: {_KERNEL}, "
                    "state kept outside of the model, or a draw from something that has no seed"
                )
    for name, bits in reversed(gradients[0].items()):
        if gradients[1].get(name) != bits:
            return f"the gradient of {name} is another when it is computed again: {_KERNEL}, in the backward pass"
    if found.where == "optimizer":
        return "the optimizer: it draws, or keeps something that is not a function of the gradients"
    return (
        "not found in one process, where a micro-batch run twice gives the same bits: something that depends on the "
        "process or on what it ran before, such as a global variable, a cache, the time or the order of a set"
    )


def _devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def _gradients(model: nn.Module, bound: losses.LossCall, batch: Any) -> dict[str, int]:
    """The bits of the gradient of one micro-batch."""
    for parameter in model.parameters():
        parameter.grad = None
    bound.summed(bound.forward(model, batch), batch, 0, tree.count(batch), False)[0].backward()
    return {name: int(sum_of_bits(p.grad)) for name, p in model.named_parameters() if p.grad is not None}


class _Moved:
    """What beside torch's own generators changes while layers run, and in which of them."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self._running: list[nn.Module] = []
        self._before = _global_draws()

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch every layer of ``model``."""
        labels = {m: f"{name or 'the model'} ({type(m).__name__})" for name, m in model.named_modules()}
        own = {module: _own_state(module) for module in labels}
        handles = []
        for module, label in labels.items():
            handles.append(module.register_forward_pre_hook(self._entering(labels)))
            handles.append(module.register_forward_hook(self._leaving(label)))
        try:
            yield
            for module, label in labels.items():
                self._compare(label, own[module], _own_state(module))
        finally:
            for handle in handles:
                handle.remove()

    def look(self, label: str) -> None:
        """Whatever moved since the last look did so in ``label``."""
        now = _global_draws()
        for name, state in now.items():
            if state != self._before[name]:
                self._say(f"an unkeyed draw: {label} draws from {name}, {_UNKEYED}")
        self._before = now

    def _entering(self, labels: dict[nn.Module, str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.look(labels[self._running[-1]] if self._running else "the loss function")
            self._running.append(module)

        return hook

    def _leaving(self, label: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.look(label)
            self._running.pop()

        return hook

    def _compare(self, label: str, before: dict[str, tuple[bool, Any]], after: dict[str, tuple[bool, Any]]) -> None:
        for name in [name for name in after if name not in before or before[name][1] != after[name][1]]:
            if after[name][0]:
                self._say(f"an unkeyed draw: {label} draws from a generator of its own, {name!r}, {_UNKEYED}")
            else:
                self._say(
                    f"state kept in Python: {label} changes its attribute {name!r} in the forward pass, so that a "
                    "micro-batch depends on those that the same process ran before"
                )

    def _say(self, text: str) -> None:
        if text not in self.said:
            self.said.append(text)


def _global_draws() -> dict[str, Any]:
    name, words, *rest = np.random.get_state(legacy=True)
    return {"numpy.random": (name, np.asarray(words).tobytes(), *rest), "Python's random": random.getstate()}


def _own_state(module: nn.Module) -> dict[str, tuple[bool, Any]]:
    """The attributes of a layer that can be compared: whether each is a generator, and its state."""
    return {
        name: state
        for name, value in vars(module).items()
        if name not in _OF_MODULES and (state := _state(value)) is not None
    }


def _state(value: Any) -> tuple[bool, Any] | None:
    if isinstance(value, torch.Generator):
        return True, value.get_state().numpy().tobytes()
    if isinstance(value, np.random.Generator):
        return True, repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return True, repr(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return True, value.getstate()
    if isinstance(value, Tensor):
        return False, int(sum_of_bits(value))
    if isinstance(value, bool | int | float | str | tuple | list | dict | set):
        return False, repr(value)
    return None
