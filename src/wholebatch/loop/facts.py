"""What a run's result depends on beside its state, in plain words: compared when a run goes on."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.data import ArrayDataset, BatchLoader, StreamLoader
from wholebatch.step import Step

_HOW = (
    "params",
    "initial_lr",
    "foreach",
    "fused",
    "capturable",
)  # these change how it is computed, or are not settings
_LOOKED_AT = 64  # samples of data in memory, evenly spread, that the digest is of


def facts_of(
    step: Step,
    loader: BatchLoader | StreamLoader,
    loss: Any,
    schedule: Any,
    schedule_unit: str,
    batch_lr_rule: str | None = None,
) -> dict[str, Any]:
    """Return, by name, every setting that changes the result: numbers, strings, and dicts of them.

    Objects are told apart by what their class and ``repr`` say; of a function only the name is seen.
    """
    mix = getattr(loader, "mix", None)
    ordering = {"shuffle": getattr(loader, "shuffle", None), "drop_last": getattr(loader, "drop_last", None)}
    if isinstance(loader, BatchLoader) and not loader.sizes.fixed:
        ordering["batch_size"] = loader.sizes.described()
    return {
        "loss": described(loss),
        "optimizer": optimizer_facts(step.optimizer),
        "schedule": described(schedule),
        "schedule_unit": schedule_unit if schedule is not None else None,
        "clip_norm": step.clip_norm,
        "precision": step.precision,
        "layers": {name: layer.extra_repr() for name, layer in step.model.named_modules() if layer.extra_repr()},
        "data": {"kind": type(loader.dataset).__name__, "digest": _digest(loader.dataset)},
        "transform": described(loader.transform if mix is None else [loader.transform, mix]),
        "order": ordering,
        **({"bitwise": step.pinned_facts()} if step.bitwise else {}),
        **({} if step.mode is None else {"parallel": step.mode}),
        **({} if batch_lr_rule is None else {"batch_lr_rule": batch_lr_rule}),
    }


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """Return the optimizer's class and every group's settings as they were at the beginning.

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


def _digest(dataset: Any) -> int | None:
    """A checksum of some samples of data in memory; None of other data, which reading would cost time."""
    if not isinstance(dataset, ArrayDataset):
        return None
    indices = torch.linspace(0, len(dataset) - 1, min(_LOOKED_AT, len(dataset)), dtype=torch.float64).long()
    code = 0
    for _, array, _ in tree.arrays(dataset.take(indices)):
        data = torch.as_tensor(array).cpu().contiguous().flatten().view(torch.uint8)
        code = zlib.crc32(data.numpy().tobytes(), code)
    return code
