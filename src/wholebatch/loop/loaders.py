"""The loaders of a training and of an evaluation, made of what people have, and how many samples they give at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.errors import ConfigError
from wholebatch.data import BatchLoader, StreamLoader, as_loader
from wholebatch.data.select import selection, with_selection
from wholebatch.loop.modes import begin_training, modes_given_back
from wholebatch.step import Step
from wholebatch.step.losses import FunctionLoss, bind

_BATCH_SIZE = 512  # where nobody says one
_PEEKED = 16  # samples that the micro-batch is found with

Loader = BatchLoader | StreamLoader


def training_loader(data: Any, batch_size: Any, unit: str, seed: int, workers: int) -> Loader:
    """Return what gives the batches of a training, in an order drawn from ``seed``.

    Args:
        data: what :func:`wholebatch.train` takes.
        batch_size: a number; a schedule of them, which counts in ``unit``; or None, for the data's own or 512.
        unit: "epoch" or "samples".
        seed: of the order, and of augmentation.
        workers: processes that read samples.

    Raises:
        ConfigError: a unit without a schedule of batch sizes; DataError and InputTypeError as the loaders raise them.
    """
    scheduled = isinstance(batch_size, Mapping) or callable(batch_size)
    if not scheduled and unit != "epoch":
        raise ConfigError(f"batch_size_unit={unit!r} is about a schedule of batch sizes; batch_size is {batch_size!r}")
    sizes = BatchSizes(batch_size, unit) if scheduled else batch_size
    return _loader(data, sizes, seed, shuffle=True, workers=workers)


def evaluation_loader(data: Any, batch_size: int | None, workers: int) -> Loader:
    """Return what gives ``data`` in their own order; ``batch_size`` is for those that say none themselves."""
    size = None if getattr(data, "batch_size", None) else batch_size
    return _loader(data, size, 0, shuffle=False, workers=workers)


def _loader(data: Any, batch_size: int | BatchSizes | None, seed: int, shuffle: bool, workers: int) -> Loader:
    own = batch_size is None and (isinstance(data, BatchLoader | StreamLoader) or getattr(data, "batch_size", None))
    size = batch_size if own or batch_size is not None else _BATCH_SIZE
    return as_loader(data, size, seed=seed, shuffle=shuffle, workers=workers)


def micro_batch_of(micro_batch: int | str, accumulation_steps: int | None, batch_size: int | None) -> int | str:
    """Return the micro-batch that a training is asked for, in samples, or "auto".

    Raises:
        ConfigError: it is said twice, or ``accumulation_steps`` has no batch to cut.

    >>> micro_batch_of("auto", None, 512), micro_batch_of("auto", 5, 512)
    ('auto', 103)
    """
    if accumulation_steps is None:
        return micro_batch
    if micro_batch != "auto":
        both = f"micro_batch={micro_batch!r} and accumulation_steps={accumulation_steps}"
        raise ConfigError(f"{both} say the same; give one of them")
    if batch_size is None:
        raise ConfigError("accumulation_steps needs a batch_size, which this loader does not have; give micro_batch")
    return math.ceil(batch_size / accumulation_steps)


def fitted(step: Step, loader: Loader, device: torch.device) -> int | None:
    """Return the micro-batch that "auto" takes, found before the first window is asked for; None for all at once."""
    if not isinstance(loader, BatchLoader) or not step.size.automatic:
        return step.fit(None, 0)
    with modes_given_back(step.model):
        begin_training(step.model)
        batch, samples = loader.peek(_PEEKED, device, step.align)
        return step.fit(batch, samples)


@contextmanager
def selecting(loader: Loader, loss: Any, inputs: Any, targets: Any) -> Iterator[None]:
    """Within the block the loader gives ``(inputs, *targets)`` where its batches are dicts and their keys are known."""
    before = loader.transform
    dataset = getattr(loader.dataset, "dataset", loader.dataset)  # a DataLoader holds its data set
    if inputs is not None or targets is not None or (before is None and not _reads_dicts(loss)):
        loader.transform = with_selection(before, selection(dataset, inputs, targets))
    try:
        yield
    finally:
        loader.transform = before


def _reads_dicts(loss: Any) -> bool:
    return loss is not None and isinstance(bind(loss), FunctionLoss)
