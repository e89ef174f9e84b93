"""Counting what is right and summing what is lost, over whole data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.compat.d2l.accumulator import Accumulator
from wholebatch.core import tree
from wholebatch.core.errors import DataError


def accuracy(y_hat: Tensor, y: Tensor) -> float:
    """Return how many predictions are right, as a float.

    Args:
        y_hat: scores, (n, classes, …), or predicted labels in the shape of ``y`` (or a column of them).
        y: labels.

    >>> accuracy(torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]]), torch.tensor([0, 2]))
    1.0
    """
    if y_hat.ndim > 1 and y_hat.shape[1] > 1:
        y_hat = y_hat.argmax(dim=1)
    if y_hat.numel() == y.numel():
        y_hat = y_hat.reshape(y.shape)  # a column against a row would compare everything with everything
    return float((y_hat.type(y.dtype) == y).sum())


def evaluate_accuracy(net: Callable[..., Tensor], data_iter: Iterable[Any]) -> float:
    """Return the part of a data set that ``net``, a module or any function, predicts rightly.

    A module is put into evaluation mode and stays there, as in the book.

    Raises:
        DataError: there are no data.
    """
    return _evaluate(net, data_iter, None)


def evaluate_accuracy_gpu(net: Callable[..., Tensor], data_iter: Iterable[Any], device: Any = None) -> float:
    """Return the same, with every batch moved to ``device``, or to the module's own.

    The inputs may be a list of tensors. A function without ``device`` gets the data where they are.
    """
    if device is None and isinstance(net, nn.Module):
        device = next((parameter.device for parameter in net.parameters()), None)
    return _evaluate(net, data_iter, device)


def _evaluate(net: Callable[..., Tensor], data_iter: Iterable[Any], device: Any) -> float:
    if isinstance(net, nn.Module):
        net.eval()
    metric = Accumulator(2)
    with torch.no_grad():
        for X, y in data_iter:
            if device is not None:
                X, y = tree.to_device(X, device), y.to(device)
            metric.add(accuracy(net(X), y), y.numel())
    if not metric[1]:
        raise DataError("there is nothing to evaluate: the data gave no batch; an iterator can be read only once")
    return metric[0] / metric[1]


def evaluate_loss(net: Callable[..., Tensor], data_iter: Iterable[Any], loss: Callable[..., Tensor]) -> float:
    """Return the mean of ``loss(net(X), y)`` over a data set; modes stay as they are, as in the book.

    ``y`` takes the shape of the output where it has as many elements. Unreduced losses are averaged over all their
    elements; of a loss that gives a mean, each counts as many samples as it was taken over.

    Raises:
        DataError: there are no data.
    """
    metric = Accumulator(2)
    with torch.no_grad():
        for X, y in data_iter:
            out = net(X)
            y = y.reshape(out.shape) if y.numel() == out.numel() else y
            losses = loss(out, y)
            count = len(y) if is_mean(loss, losses) else losses.numel()
            metric.add(loss_sum(loss, losses, count), count)
    if not metric[1]:
        raise DataError("there is nothing to evaluate: the data gave no batch; an iterator can be read only once")
    return metric[0] / metric[1]


def is_mean(loss: Any, losses: Tensor) -> bool:
    """Say whether ``losses``, which ``loss`` gave, is a mean over a batch: by torch's losses, at their default."""
    if losses.ndim:
        return False
    torchs = getattr(loss, "__module__", "") == "torch.nn.functional"
    return getattr(loss, "reduction", "mean" if torchs else None) == "mean"


def loss_sum(loss: Any, losses: Tensor, count: int) -> Tensor:
    """Return the sum of a batch's losses: where ``loss`` gave their mean over ``count``, that many times it."""
    return losses.detach() * count if is_mean(loss, losses) else losses.detach().sum()
