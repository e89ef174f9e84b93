"""Float32 copies of parameters in bfloat16, which the optimizer moves.

A weight of bfloat16 has 8 significant bits: an update below 1/512 of it is rounded away. So the optimizer moves a
float32 copy, its own state is float32, and the parameter is that copy, rounded (Micikevicius et al. 2018, "Mixed
Precision Training").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core.errors import InputError
from wholebatch.step.precision import is_half, lower


class Masters:
    """The copies of one optimizer's parameters. Made before these are rounded, it keeps what rounding loses.

    What somebody else writes into a parameter is taken over; where nobody has, the copy is what counts.
    """

    def __init__(self, named: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self._named = dict(named)
        self._copies = {p: p.detach().to(torch.float32, copy=True) for p in named.values() if p.is_floating_point()}
        optimizer.register_load_state_dict_pre_hook(lambda *_: self.raise_())
        optimizer.register_load_state_dict_post_hook(lambda *_: self.lower())
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and is_half(value):
                    state[name] = value.float()

    def begin(self) -> None:
        """The parameters have been rounded; those that have not need no copy."""
        self._copies = {parameter: copy for parameter, copy in self._copies.items() if is_half(parameter)}

    def raise_(self) -> None:
        """Let the parameters be the copies: an optimizer steps, and loads its state, in the parameters' dtype."""
        with torch.no_grad():
            for parameter, copy in self._copies.items():
                if is_half(parameter):
                    parameter.data = torch.where(parameter == copy.to(parameter.dtype), copy, parameter.float())

    def lower(self) -> None:
        """Let the parameters be the copies, rounded."""
        for parameter in self._copies:
            if parameter.dtype is torch.float32:
                self._copies[parameter] = parameter.data
                parameter.data = parameter.data.to(torch.bfloat16)

    def step(self, optimizer: Optimizer) -> None:
        """Step the copies, and round."""
        self.raise_()
        try:
            optimizer.step()
        finally:
            self.lower()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the copies by the parameters' names."""
        return {name: self._copies[p] for name, p in self._named.items() if p in self._copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over copies.

        Raises:
            InputError: they are of another model.
        """
        own = self.state_dict()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise InputError("the float32 weights of this state are of another model; make the step for the same model")
        for name, copy in state.items():
            self._copies[self._named[name]].copy_(copy)


def lowered(modules: Sequence[nn.Module], optimizer: Optimizer) -> Masters:
    """Make the first of ``modules`` bfloat16; return float32 copies of all that the optimizer holds, for it to move."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in nn.ModuleList(modules).named_parameters() if id(p) in held}
    masters = Masters(named, optimizer)
    lower(modules[0])
    masters.begin()
    return masters
