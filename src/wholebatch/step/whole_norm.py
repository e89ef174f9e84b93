"""Batch norm over one batch that several processes share: sums travel layer by layer, forward and backward.

Every process runs the same layers in the same order, and each sum begins with a meeting, in which a process that
has failed says so: otherwise the others would wait for it within their next layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import InputError, PeerError
from wholebatch.core.processes import Processes

_AT_WORK, _DONE, _FAILED = 1, 2, 3


class Meeting:
    """Where the processes of one window meet before each sum, and once at its end."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._over = False

    def counts(self, samples: int | None) -> list[int]:
        """Return how many samples each process has (1, where one does not know).

        Raises:
            PeerError: another process has failed before.
        """
        self._meet(_AT_WORK)
        return self._processes.exchange(1 if samples is None else samples)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of ``tensor`` over all processes.

        Raises:
            PeerError: another process has failed.
        """
        self._meet(_AT_WORK)
        return self._processes.sum_(tensor.detach().clone(memory_format=torch.contiguous_format))

    def end(self, failed: bool) -> None:
        """Say that this process is done; once, and not where another one's failure is what ended it.

        Raises:
            PeerError: another process has failed, while this one has not.
        """
        if not self._over:
            self._over = failed
            self._meet(_FAILED if failed else _DONE)

    def _meet(self, state: int) -> None:
        states = self._processes.exchange(state)
        failed = [rank for rank, other in enumerate(states) if other == _FAILED]
        if state == _FAILED or states.count(state) == len(states):
            return
        self._over = True
        if failed:
            raise PeerError(
                f"process {failed[0]} failed within a batch norm over all processes; its own message says why"
            )
        raise InputError(
            "the processes run different layers, but a batch norm over the whole batch (group=None) needs all of them "
            "in each; use wholebatch.convert_batchnorm(model, group=32)"
        )


class _Sum(torch.autograd.Function):
    """A sum over processes. Each process's loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, meeting: Meeting) -> Tensor:
        ctx.meeting = meeting
        return meeting.sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.meeting.sum(gradients[0]), None


def normalise_together(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, meeting: Meeting
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``x``, (rows, channels, …), normalised over the rows of all processes, their mean and unbiased variance.

    Raises:
        ValueError: there is one value per channel, as ``nn.BatchNorm1d`` says.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    exact = x if x.dtype is torch.float64 else x.float()
    own = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
    sums: Tensor = _Sum.apply(torch.cat([exact.sum(axes).double(), own]), meeting)
    count = sums[-1].detach()
    if count <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    mean = sums[:-1] / count
    centred = exact - mean.to(exact.dtype).view(shape)
    squares: Tensor = _Sum.apply((centred * centred).sum(axes).double(), meeting)
    variance = squares / count
    scaled = centred * (variance + eps).rsqrt().to(exact.dtype).view(shape)
    if weight is not None:
        scaled = scaled * weight.view(shape)
    if bias is not None:
        scaled = scaled + bias.view(shape)
    return scaled.to(x.dtype), mean.detach(), (squares / (count - 1)).detach()
