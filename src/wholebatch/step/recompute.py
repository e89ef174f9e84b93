"""Activation checkpointing by layer pattern: chosen layers keep their inputs alone, and run again in backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

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
    for module in _chosen(model, pattern):
        if not isinstance(vars(module).get("forward"), functools.partial):
            own = vars(module).get("forward")
            module.forward = functools.partial(_run, module) if own is None else functools.partial(_again, own)
    return model


@contextmanager
def recomputed(model: nn.Module, pattern: str) -> Iterator[None]:
    """Within the block the layers that ``pattern`` names run again in backward (:func:`recompute`)."""
    before = [(module, vars(module).get("forward")) for module in _chosen(model, pattern)]
    recompute(model, pattern)
    try:
        yield
    finally:
        for module, forward in before:
            del module.forward
            if forward is not None:
                module.forward = forward


def _run(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a layer by the class that it has now."""
    return _again(functools.partial(type(module).forward, module), *args, **kwargs)


def _again(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _chosen(model: nn.Module, pattern: str) -> list[nn.Module]:
    """The layers that ``pattern`` names, of nested ones the outermost."""
    taken: list[str] = []
    names = [name for name, _ in model.named_modules() if name]
    for part in (word.strip() for word in pattern.split(",")):
        found = [name for name in names if fnmatchcase(name, part)]
        if not found:
            raise ConfigError(f"no layer is named {part!r}{nearest(part, names)}; names are those of named_modules()")
        taken += found
    outermost = [name for name in taken if not any(name.startswith(f"{outer}.") for outer in taken)]
    return list(dict.fromkeys(model.get_submodule(name) for name in outermost))
