"""What one optimizer step says about the whole batch; values are read from the device when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from wholebatch.sums import NoiseScale


class StepReport:
    """One step over the whole batch.

    Attributes:
        weight: what the gradient was divided by: the weight of all loss elements.
        samples: number of samples.
        micro_batches: number of forward/backward passes.
        skipped: True where nothing was applied (total weight 0, or a non-finite gradient with
            ``nonfinite="skip"``).
        noise_scale: an estimate of the gradient noise scale, in samples, over about the last hundred steps
            (:mod:`wholebatch.sums.noise`); None until it is known, and where nothing tells: one micro-batch in one
            process, or a loss of the whole batch.
        noise_interval: where it is with 95 % confidence: (low, high), or None.
    """

    __slots__ = (
        "__weakref__",
        "_gradients",
        "_loss",
        "_noise",
        "_norm",
        "_sums",
        "micro_batches",
        "samples",
        "skipped",
        "weight",
    )

    def __init__(
        self,
        sums: Sequence[Tensor],
        weight: float,
        samples: int,
        micro_batches: int,
        skipped: bool,
        gradients: Sequence[Tensor],
        noise: NoiseScale | None = None,
    ) -> None:
        self._sums = sums
        self._loss: float | None = None
        self._norm: float | Tensor | None = None
        self._gradients: Sequence[Tensor] = gradients
        self._noise = noise
        self.weight = weight
        self.samples = samples
        self.micro_batches = micro_batches
        self.skipped = skipped

    @property
    def loss_sum(self) -> Tensor:
        """The weighted sum of the losses, a float64 scalar on the losses' device; nothing is read."""
        if not self._sums:
            return torch.zeros((), dtype=torch.float64)
        return torch.stack(list(self._sums)).sum(dtype=torch.float64)

    @property
    def loss(self) -> float:
        """The weighted mean of the losses over the whole batch; NaN where the weight is 0."""
        if self._loss is None:
            self._loss = float(self.loss_sum) / self.weight if self.weight else float("nan")
        return self._loss

    @property
    def grad_norm(self) -> float:
        """The 2-norm of the whole gradient, before clipping."""
        self.settle()
        if isinstance(self._norm, Tensor):
            self._norm = float(self._norm)
        assert self._norm is not None
        return self._norm

    @property
    def noise_scale(self) -> float | None:
        """The gradient noise scale as far as this step knew it; reads the device."""
        return None if self._noise is None else self._noise.value

    @property
    def noise_interval(self) -> tuple[float, float] | None:
        """Where the gradient noise scale is with 95 % confidence."""
        return None if self._noise is None else self._noise.interval

    def settle(self) -> None:
        """Work the norm out while the gradient is still there; the next step calls this."""
        if self._noise is not None:
            self._noise = self._noise.copy()
        if self._norm is None:
            self._norm = norm_of(self._gradients)
        self._gradients = ()

    def __repr__(self) -> str:
        return (
            f"StepReport(loss={self.loss:.6g}, weight={self.weight:g}, samples={self.samples}, "
            f"grad_norm={self.grad_norm:.6g}, micro_batches={self.micro_batches}, skipped={self.skipped})"
        )


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all elements of ``gradients`` together, a scalar on the first one's device."""
    if not gradients:
        return torch.zeros(())
    dense = [g.values() if g.is_sparse else g for g in gradients]
    first = dense[0]
    if all(type(g) is Tensor and g.device == first.device and g.dtype == first.dtype for g in dense):
        # what the next one comes to, without its detours
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(dense)))
    return torch.nn.utils.get_total_norm(dense)


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients there are; sparse ones coalesced, so that their values can be changed in place."""
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse and not gradient.is_coalesced():
            parameter.grad = gradient = gradient.coalesce()
        found.append(gradient)
    return found
