"""What a run's result depends on beside its state, in plain words: compared when a run goes on."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from wholebatch.core import tree
from wholebatch.data import ArrayDataset, BatchLoader, StreamLoader
from wholebatch.step import Step
from wholebatch.step.described import described, optimizer_facts

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
