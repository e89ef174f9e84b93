"""A model's weights under the names that the plain model has, whatever it is wrapped in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def plain_state(model: nn.Module) -> dict[str, Any]:
    """Return ``model.state_dict()`` without the prefixes ``module.`` and ``_orig_mod.`` of its wrappers.

    Only the prefixes of DistributedDataParallel, DataParallel and ``torch.compile`` go, at any depth; a layer
    that somebody named ``module`` keeps its name. Tensors are detached and shared with the model, not copied.

    >>> plain_state(DataParallel(nn.Linear(1, 1))).keys()
    dict_keys(['weight', 'bias'])
    """
    state = {}
    plain = _Names(model).plain
    for name, value in model.state_dict().items():
        state[plain(name)] = value.detach() if isinstance(value, Tensor) else value
    return state


def load_plain_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Load what :func:`plain_state` gave, also from a model that was wrapped otherwise.

    Raises:
        RuntimeError: names or shapes differ (as ``load_state_dict`` raises).
    """
    plain = _Names(model).plain
    wrapped = {plain(name): name for name in model.state_dict()}
    model.load_state_dict({wrapped.get(name, name): value for name, value in state.items()})


class _Names:
    """Names in a model, and the same without its wrappers."""

    def __init__(self, model: nn.Module) -> None:
        self._extra: list[str] = []  # what to cut: a wrapper's path and its own part of the names
        for path, module in model.named_modules(remove_duplicate=False):
            part = _part_of(module)
            if part:
                self._extra.append(f"{path}.{part}." if path else f"{part}.")
        self._extra.sort(key=len, reverse=True)  # the innermost first, while its path still holds

    def plain(self, name: str) -> str:
        """The name without wrappers."""
        for prefix in self._extra:
            if name.startswith(prefix):
                outer = prefix[:-1].rpartition(".")[0]
                name = (f"{outer}." if outer else "") + name[len(prefix) :]
        return name


def _part_of(module: nn.Module) -> str:
    """The part of the names that comes from ``module`` being a wrapper; "" where it is none."""
    if isinstance(module, DistributedDataParallel | DataParallel):
        return "module"
    return "_orig_mod" if "_orig_mod" in module._modules else ""
