"""Evaluation: every sample once, sums until the end, the model's mode given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from wholebatch.core.errors import DataError, InputError
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.loop.metrics import Metrics
from wholebatch.step.losses import LossCall, call_model
from wholebatch.sums import Accumulator


def evaluate(
    model: nn.Module, loader: BatchLoader | StreamLoader, metrics: Metrics, loss: LossCall | None, device: torch.device
) -> dict[str, float]:
    """Return ``loss`` (where there is one), the metrics' values, and ``samples``.

    Raises:
        DataError: fewer or more samples were seen than the data set has.
        InputError: there is nothing to measure.
    """
    sums, seen = Accumulator("loss", "weight"), 0
    metrics.reset()
    with evaluating(model), torch.inference_mode():
        for window in loader.windows(None, device):
            (piece,) = window
            seen += window.samples
            if loss is None:
                metrics.add(call_model(model, piece), *piece[1:])
                continue
            output = loss.forward(model, piece)
            loss_sum, weight = loss.summed(output, piece, seen - window.samples, window.samples, True)
            sums.add(loss_sum, loss.whole_weight or weight)
            if loss.shows_output:
                metrics.add(output, *piece[1:])
    if loader.samples is not None and seen != loader.samples:
        raise DataError(f"evaluation saw {seen} samples, but the data set has {loader.samples}")
    if loss is None and not len(metrics):
        raise InputError(
            "nothing to measure: the outputs are no scores of classes with class numbers as targets; "
            "pass metrics= or loss="
        )
    result = {} if loss is None else {"loss": sums["loss"] / sums["weight"] if sums["weight"] else float("nan")}
    return {**result, **metrics.values(), "samples": float(seen)}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all layers into evaluation mode, and back into the mode each one had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
