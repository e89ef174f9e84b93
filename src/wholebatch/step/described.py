"""Optimizers, losses and other objects in plain words, which are the same in every process and after a restart."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_HOW = (
    "params",
    "initial_lr",
    "foreach",
    "fused",
    "capturable",
)  # these change how it is computed, or are not settings


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's class and every group's settings as they were at the beginning.

    >>> import torch
    >>> optimizer_facts(torch.optim.SGD([torch.zeros(1)], lr=0.5))["group 0"]["lr"]
    0.5
    """
    facts: dict[str, Any] = {"kind": type(optimizer).__name__}
    for number, group in enumerate(optimizer.param_groups):
        settings = {name: _plain(value) for name, value in group.items() if name not in _HOW}
        settings["lr"] = _plain(group.get("initial_lr", group["lr"]))
        facts[f"group {number}"] = {name: value for name, value in settings.items() if value is not None}
    return facts


def described(thing: Any) -> Any:
    """Return ``thing`` in plain words that are the same in the next process.

    >>> described(nn.CrossEntropyLoss(ignore_index=3))["ignore_index"]
    3
    >>> described(functools.partial(nn.functional.cross_entropy, label_smoothing=0.5))
    {'kind': 'cross_entropy', 'label_smoothing': 0.5}
    """
    if isinstance(thing, functools.partial):
        settings = {name: _plain(value) for name, value in thing.keywords.items()}
        return {"kind": described(thing.func), **settings}
    if isinstance(thing, nn.Module):
        own = {name: value for name, value in vars(thing).items() if not name.startswith("_") and name != "training"}
        buffers = {name: buffer.flatten().tolist() for name, buffer in thing.named_buffers() if buffer.numel() < 10_000}
        return {"kind": type(thing).__name__, **{name: _plain(value) for name, value in own.items()}, **buffers}
    if callable(thing) and hasattr(thing, "__qualname__"):
        return str(thing.__qualname__)
    return _plain(thing)


def _plain(value: Any) -> Any:
    """A number or text as it is, anything else by its repr, or by its class where that has an address in it."""
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() < 10_000 else f"a tensor of shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text
