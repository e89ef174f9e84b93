"""What a loop's optimizer finds: the gradients at the moment of its step, whatever the learning rate.

Torch calls global hooks before and after every ``Optimizer.step``. A step that is given a closure (Lightning's)
computes its gradients inside, so that the closure is followed and the gradients are read after it. An optimizer that
takes the scale of a ``GradScaler`` finds gradients that it divides itself; that is done here too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class Watch:
    """Records what the optimizers of some parameters find; a context manager.

    Attributes:
        found: the gradient of each parameter that was stepped, by its place, added up where it was stepped
            more than once; None where it had none.
        steps: how often the parameter that was stepped most was stepped with a gradient.
        half: the half precision that some module of the window computed in, as under autocast; None where none did.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._places = {id(parameter): place for place, parameter in enumerate(parameters)}
        self._handles: list[Any] = []
        self._within: Optimizer | None = None
        self._kept: dict[int, tuple[Optimizer, Any, list[dict[str, Any]]]] = {}
        self.found: dict[int, Tensor | None] = {}
        self.half: torch.dtype | None = None
        self._counts: dict[int, int] = {}

    @property
    def steps(self) -> int:
        """How often a parameter was stepped, at most."""
        return max(self._counts.values(), default=0)

    def forget(self) -> None:
        """A new window begins."""
        self.found, self._counts, self._within, self.half = {}, {}, None, None

    def __enter__(self) -> Watch:
        self._handles = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
            register_module_forward_hook(self._look),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for optimizer, state, groups in self._kept.values():
            optimizer.state = state
            for group, before in zip(optimizer.param_groups, groups, strict=False):
                group.clear()
                group.update(before)

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dtype in (torch.bfloat16, torch.float16):
            self.half = output.dtype

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self._within is not None or not any(id(parameter) in self._places for parameter in held):
            return None  # a step inside another one's, or of somebody else's parameters
        self._within = optimizer
        self._keep(optimizer)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._record(optimizer, held)
            return None
        followed = self._followed(closure, optimizer, held)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": followed}
        return (args[0], followed, *args[2:]), kwargs

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self._within is optimizer:
            self._within = None

    def _keep(self, optimizer: Optimizer) -> None:
        """An optimizer that was there before keeps its state: it works on an empty one until the end."""
        if id(optimizer) not in self._kept:
            groups = [dict(group) for group in optimizer.param_groups]
            self._kept[id(optimizer)] = optimizer, optimizer.state, groups
            optimizer.state = defaultdict(dict)

    def _followed(self, closure: Callable[[], Any], optimizer: Optimizer, held: list[Tensor]) -> Callable[[], Any]:
        calls = 0

        def following() -> Any:
            nonlocal calls
            value = closure()
            calls += 1
            if calls == 1:  # an optimizer that evaluates several times begins where the weights still are
                self._record(optimizer, held)
            return value

        return following

    def _record(self, optimizer: Optimizer, held: list[Tensor]) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # set by GradScaler.step where the optimizer unscales by itself
        for parameter in held:
            place = self._places.get(id(parameter))
            if place is None:
                continue
            gradient = None if parameter.grad is None else dense(parameter.grad)
            if gradient is not None and scale is not None:
                gradient /= float(scale)
            before = self.found.get(place)
            self.found[place] = gradient if before is None else before if gradient is None else before + gradient
            self._counts[place] = self._counts.get(place, 0) + (gradient is not None)


def dense(gradient: Tensor) -> Tensor:
    """A copy in float64, sparse rows filled in."""
    gradient = gradient.detach()
    return (gradient.to_dense() if gradient.is_sparse else gradient).to(torch.float64, copy=True)
