"""Evaluation: every sample once, sums until the end, the model's modes given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wholebatch.core.errors import DataError, InputError
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.loop.dtypes import explain
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.modes import modes_given_back
from wholebatch.step.losses import LossCall, call_model
from wholebatch.sums import Accumulator


def evaluate(
    model: nn.Module, loader: BatchLoader | StreamLoader, metrics: Metrics, loss: LossCall | None, device: torch.device
) -> dict[str, float]:
    """Return ``loss`` (where there is one), the metrics' values, and ``samples``; nothing is changed.

    The loader is read from the beginning of its epoch, and put back to the place where it was.

    Raises:
        DataError: fewer or more samples were seen than the data set has.
        InputError: there is nothing to measure, or the inputs are of another dtype than the model.
    """
    sums, seen = Accumulator("loss", "weight"), 0
    metrics.reset()
    with modes_given_back(model), _from_the_beginning(loader), torch.inference_mode():
        model.eval()
        for window in loader.windows(None, device):
            batch = window.whole()
            try:
                output = call_model(model, batch) if loss is None else loss.forward(model, batch)
                if loss is not None:
                    loss_sum, weight = loss.summed(output, batch, seen, window.samples, True)
                    sums.add(loss_sum, 0 if weight is None else weight)
            except RuntimeError as error:
                explain(error, model, batch)
                raise
            if loss is None or loss.shows_output:
                metrics.add(output, *targets_of(batch))
            seen += window.samples
    if loader.samples is not None and seen != loader.samples:
        raise DataError(
            f"evaluation saw {seen} samples, but the data set has {loader.samples}; every sample counts once, "
            "so use a loader without drop_last"
        )
    if loss is None and not len(metrics):
        raise InputError(
            "nothing to measure: the outputs are no scores of classes with class numbers as targets; "
            "pass metrics= or loss="
        )
    return {**({} if loss is None else {"loss": _mean(sums, loss)}), **metrics.values(), "samples": float(seen)}


def targets_of(batch: Any) -> tuple[Any, ...]:
    """Return what follows the inputs in ``(inputs, *targets)``; nothing where the batch is not made so."""
    return tuple(batch[1:]) if isinstance(batch, tuple | list) else ()


def _mean(sums: Accumulator, loss: LossCall) -> float:
    """The weighted mean; a loss that is a sum over the whole batch is one over the whole data set here."""
    weight = sums["weight"] if loss.whole_weight is None else loss.whole_weight
    return float(sums["loss"] / weight) if weight else float("nan")


@contextmanager
def _from_the_beginning(loader: BatchLoader | StreamLoader) -> Iterator[None]:
    place = loader.state_dict()
    loader.load_state_dict({**place, "consumed": 0})
    try:
        yield
    finally:
        loader.load_state_dict(place)
