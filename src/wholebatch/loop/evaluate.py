"""Evaluation: every sample once, sums until the end, the model's modes given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from wholebatch.core import tree
from wholebatch.core.errors import DataError, InputError
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Processes, current
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.loop.dtypes import explain
from wholebatch.loop.loaders import selecting
from wholebatch.loop.metrics import Metrics, ignored
from wholebatch.loop.modes import modes_given_back
from wholebatch.step.losses import LossCall, bind, call_model, targets_of
from wholebatch.step.parts import ready_to_evaluate, split_of
from wholebatch.sums import Accumulator
from wholebatch.sums.exact import ExactSum


def evaluation(
    model: nn.Module,
    loader: BatchLoader | StreamLoader,
    metrics: Any,
    loss: Any,
    device: torch.device,
    *,
    inputs: Any = None,
    targets: Any = None,
    micro_batch: int | None = None,
) -> Callable[[], dict[str, float]]:
    """Return what evaluates ``model`` as often as it is called, by :func:`evaluate`.

    Args:
        model: any module.
        loader: of the data.
        metrics: a metric, a dict of them, or None (:class:`Metrics`).
        loss: what :class:`wholebatch.Step` takes, or None.
        device: where the model is.
        inputs, targets: keys of batches that are dicts.
        micro_batch: cut by position into so many samples, as bitwise mode does.
    """
    call, kept = None if loss is None else bind(loss), Metrics(metrics, ignored(loss))

    def run() -> dict[str, float]:
        with selecting(loader, loss, inputs, targets):
            return evaluate(model, loader, kept, call, device, micro_batch)

    return run


def evaluate(
    model: nn.Module,
    loader: BatchLoader | StreamLoader,
    metrics: Metrics,
    loss: LossCall | None,
    device: torch.device,
    micro_batch: int | None = None,
) -> dict[str, float]:
    """Return ``loss`` (where there is one), the metrics' values, and ``samples``; nothing is changed.

    The loader is read from the beginning of its epoch, and put back to the place where it was. With ``micro_batch``
    every batch is cut into so many samples by position, and the losses are added so that no order changes their bits.

    Raises:
        DataError: fewer or more samples were seen than the data set has.
        InputError: there is nothing to measure, or the inputs are of another dtype than the model.
    """
    processes, error = current(), None
    sums = Accumulator("loss", "weight", "samples", "failed")
    exact = None if micro_batch is None else _Cut(micro_batch)
    metrics.reset()
    with modes_given_back(model), _from_the_beginning(loader), ready_to_evaluate(model):
        model.eval()
        try:
            _feed(model, loader, metrics, loss, device, sums, exact)
        except Exception as caught:
            if processes.size == 1 or _waits(model):
                raise
            error = caught  # it travels to the other processes, which wait for this one's sums
            sums.add(0, 0, 0, 1)

    def check(wholes: Sequence[Accumulator]) -> None:
        if wholes[0]["failed"]:
            raise_together(processes, error)

    values, (whole,) = metrics.over_processes(processes, sums, check=check)
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
    totals: Mapping[str, float] | Accumulator = whole if exact is None else exact.over_processes(processes)
    return {**({} if loss is None else {"loss": _mean(totals, loss)}), **values, "samples": float(seen)}


def _feed(
    model: nn.Module,
    loader: BatchLoader | StreamLoader,
    metrics: Metrics,
    loss: LossCall | None,
    device: torch.device,
    sums: Accumulator,
    exact: _Cut | None,
) -> None:
    """Feed this process's part of the data to the sums and the metrics."""
    for batch, place, samples in _batches(loader, device, exact):
        if not samples:
            if _waits(model):
                _stand_in(model, batch, loss)
            continue
        loss_sum: Any = 0
        weight: Any = 0
        try:
            output = call_model(model, batch) if loss is None else loss.forward(model, batch)
            if loss is not None:
                loss_sum, weight = loss.summed(output, batch, place, samples, True)
        except RuntimeError as error:
            explain(error, model, batch)
            raise
        if loss is None or loss.shows_output:
            metrics.add(output if loss is None else loss.shown(output), *targets_of(batch))
        sums.add(loss_sum, 0 if weight is None else weight, samples, 0)
        if exact is not None:
            exact.losses.add(float(loss_sum))
            exact.weights.add(float(0 if weight is None else weight))


class _Cut:
    """Sums over micro-batches that are cut by position."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        self.losses, self.weights = ExactSum(), ExactSum()

    def over_processes(self, processes: Processes) -> dict[str, float]:
        """The sums of all processes."""
        losses, weights = ExactSum(), ExactSum()
        for one, other in processes.gather((self.losses, self.weights)):
            losses.merge(one)
            weights.merge(other)
        return {"loss": losses.value, "weight": weights.value}


def _batches(
    loader: BatchLoader | StreamLoader, device: torch.device, exact: _Cut | None
) -> Iterator[tuple[Any, int, int]]:
    """What a forward sees, the place of its first sample in the data, and its samples."""
    before = 0
    if exact is None:
        windows = loader.windows(None, device)
    else:
        windows = loader.windows(exact.micro_batch, device, exact.micro_batch, True)
    for window in windows:
        if exact is not None:
            start = before + window.position
            for batch in window if window.samples else ():
                samples = min(exact.micro_batch, before + window.position + window.samples - start)
                yield tree.map_tensors(torch.clone, batch), start, samples
                start += samples
        else:
            yield window.whole(), before + window.position, window.samples
        before += loader.batch_size or window.samples


def _waits(model: nn.Module) -> bool:
    split = split_of(model)
    return split is not None and split.waits


def _stand_in(model: nn.Module, empty: Any, loss: LossCall | None) -> None:
    """Run the model for nothing, on a sample of zeros, since the others wait within it."""
    example = tree.map_tensors(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), empty)
    call_model(model, example) if loss is None else loss.forward(model, example)


def _mean(sums: Mapping[str, float] | Accumulator, loss: LossCall) -> float:
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
