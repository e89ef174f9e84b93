"""Activation checkpointing by layer pattern: chosen layers keep their inputs alone, and run again in backward."""

from __future__ import annotations

import functools
from fnmatch import fnmatchcase

from torch import nn
from torch.utils.checkpoint import checkpoint

from wholebatch.core.errors import ConfigError, nearest


def recompute(model: nn.Module, pattern: str) -> nn.Module:
    """Make the layers that ``pattern`` names run again in the backward pass; their activations are not kept.

    The result is the same, dropout included (in a :class:`Step` its masks are keyed; elsewhere the generator is put
    back). Names and state dict of the model stay as they are.

    Args:
        model: changed in place, and returned.
        pattern: names of layers, with ``*`` for any characters and commas between patterns: ``"layers.*"``. Of nested
            layers the outermost ones are taken.

    Raises:
        ConfigError: a pattern names no layer; the message names the nearest one.

    >>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> recompute(model, "0, 1")[1]
    ReLU()
    """
    taken: list[str] = []
    names = [name for name, _ in model.named_modules() if name]
    for part in (word.strip() for word in pattern.split(",")):
        found = [name for name in names if fnmatchcase(name, part)]
        if not found:
            raise ConfigError(f"no layer is named {part!r}{nearest(part, names)}; names are those of named_modules()")
        taken += found
    for name in taken:
        if not any(name.startswith(f"{outer}.") for outer in taken):
            module = model.get_submodule(name)
            if not isinstance(module.forward, functools.partial):
                module.forward = functools.partial(checkpoint, module.forward, use_reentrant=False)
    return model
