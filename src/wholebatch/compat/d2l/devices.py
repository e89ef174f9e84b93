"""Devices by d2l's names, looked up when they are asked for; and a batch spread over them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wholebatch.core.errors import BatchError


def cpu() -> torch.device:
    """Return the CPU."""
    return torch.device("cpu")


def gpu(i: int = 0) -> torch.device:
    """Return GPU ``i``, whether there is one or not."""
    return torch.device(f"cuda:{i}")


def num_gpus() -> int:
    """Return how many GPUs there are."""
    return torch.cuda.device_count()


def try_gpu(i: int = 0) -> torch.device:
    """Return GPU ``i`` where there is one, else the CPU."""
    return gpu(i) if num_gpus() > i else cpu()


def try_all_gpus() -> list[torch.device]:
    """Return all GPUs, or a list with the CPU where there is none (the English edition's list is empty then)."""
    return [gpu(i) for i in range(num_gpus())] or [cpu()]


def split_batch(
    X: Tensor, y: Tensor, devices: Sequence[torch.device | str | int]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Cut a batch along its samples into equal parts, the last one perhaps smaller, one on each of ``devices``.

    The parts are those of ``torch.nn.parallel.scatter``, which knows GPUs only; gradients flow through.

    Raises:
        BatchError: ``X`` and ``y`` are of different lengths.

    >>> split_batch(torch.arange(6).reshape(3, 2), torch.arange(3), [cpu(), cpu()])[1]
    (tensor([0, 1]), tensor([2]))
    """
    if X.shape[0] != y.shape[0]:
        raise BatchError(f"X has {X.shape[0]} samples and y has {y.shape[0]}; give as many of both")
    return _spread(X, devices), _spread(y, devices)


def _spread(tensor: Tensor, devices: Sequence[torch.device | str | int]) -> tuple[Tensor, ...]:
    parts = tensor.chunk(len(devices))  # a batch smaller than the devices are many leaves the last ones empty-handed
    return tuple(part.to(device) for part, device in zip(parts, devices, strict=False))
