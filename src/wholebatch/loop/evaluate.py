"""Evaluation: every sample once, sums until the end, the model's modes given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wholebatch.core import tree
from wholebatch.core.errors import DataError, InputError
from wholebatch.core.processes import current
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.loop.dtypes import explain
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.modes import modes_given_back
from wholebatch.step.losses import LossCall, call_model, targets_of
from wholebatch.step.over_processes import raise_together
from wholebatch.step.parts import ready_to_evaluate, split_of
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
    processes, error = current(), None
    sums = Accumulator("loss", "weight", "samples", "failed")
    metrics.reset()
    with modes_given_back(model), _from_the_beginning(loader), ready_to_evaluate(model):
        model.eval()
        try:
            _feed(model, loader, metrics, loss, device, sums)
        except Exception as caught:
            if processes.size == 1 or _waits(model):
                raise
            error = caught  # it travels to the other processes, which wait for this one's sums
            sums.add(0, 0, 0, 1)
    values, (whole,) = metrics.over_processes(processes, sums)
    if whole["failed"]:
        raise_together(processes, error)
    seen = int(whole["samples"])
    if loader.samples is not None and seen != loader.samples:
        raise DataError(
            f"evaluation saw {seen} samples, but the data set has {loader.samples}; every sample counts once, "
            "so use a loader without drop_last"
        )
    if loss is None and not values:
        raise InputError(
            "nothing to measure: the outputs are no scores of classes with class numbers as targets; "
            "pass metrics= or loss="
        )
    return {**({} if loss is None else {"loss": _mean(whole, loss)}), **values, "samples": float(seen)}


def _feed(
    model: nn.Module,
    loader: BatchLoader | StreamLoader,
    metrics: Metrics,
    loss: LossCall | None,
    device: torch.device,
    sums: Accumulator,
) -> None:
    """Feed this process's part of the data to the sums and the metrics."""
    before = 0
    for window in loader.windows(None, device):
        if not window.samples:
            if _waits(model):
                _stand_in(model, window.whole(), loss)
            continue
        batch = window.whole()
        loss_sum: Any = 0
        weight: Any = 0
        try:
            output = call_model(model, batch) if loss is None else loss.forward(model, batch)
            if loss is not None:
                loss_sum, weight = loss.summed(output, batch, before + window.position, window.samples, True)
        except RuntimeError as error:
            explain(error, model, batch)
            raise
        if loss is None or loss.shows_output:
            metrics.add(output, *targets_of(batch))
        sums.add(loss_sum, 0 if weight is None else weight, window.samples, 0)
        before += loader.batch_size or window.samples


def _waits(model: nn.Module) -> bool:
    split = split_of(model)
    return split is not None and split.waits


def _stand_in(model: nn.Module, empty: Any, loss: LossCall | None) -> None:
    """Run the model for nothing, on a sample of zeros, since the others wait within it."""
    example = tree.map_tensors(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), empty)
    call_model(model, example) if loss is None else loss.forward(model, example)


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
