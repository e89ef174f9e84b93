"""Gradients as a weighted sum: add what backward gives, divide once, clip, apply."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import processes
from wholebatch.core.errors import ConfigError, InputError, LossError, NonFiniteError
from wholebatch.step.division import all_finite, clip_, divide_
from wholebatch.step.engine import Engine, Flat, HasStages
from wholebatch.step.logical import PerWorker
from wholebatch.step.losses import weighted_sum
from wholebatch.step.options import check_clip_norm, check_held, check_model, check_nonfinite, check_optimizer
from wholebatch.step.over_processes import Totals, same_start
from wholebatch.step.parts import UNMEASURED, agree, is_part, local
from wholebatch.step.precision import step_in_own_dtype, sum_in_float32
from wholebatch.step.reductions import Divisor
from wholebatch.step.report import StepReport, gradients_of, norm_of
from wholebatch.sums import NoiseScale


class GradientAccumulator:
    """Exact gradient accumulation for people who own their loop.

    ``add`` runs backward on the sum of the losses and counts their weight; ``apply`` divides the finished
    gradient once by the total weight, clips it, and steps the optimizer. However the samples are cut into
    pieces, the update is that of the whole batch at once.

    The accumulator owns ``.grad`` of the model's parameters: the first ``add`` of a window starts from none, and
    the finished gradient stays readable after ``apply``.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> accumulator = GradientAccumulator(model)
    >>> x, y = torch.ones(5, 2), torch.zeros(5, 1)
    >>> for piece in (slice(0, 3), slice(3, 5)):
    ...     accumulator.add((model(x[piece]) - y[piece]) ** 2)
    >>> accumulator.apply(optimizer).weight
    5.0

    On several processes each adds its own pieces, and all make it and call ``apply``; ``group`` is torch.distributed's,
    and ``engine`` what sums the gradients over them (:func:`wholebatch.parallel.engine`; after backward, if none). All
    start from the first one's parameters and buffers, unless ``alike=False`` leaves that to the caller.

    Raises:
        InputTypeError: ``model`` is no ``torch.nn.Module``.
        InputError: the model is wrapped by an engine that averages gradients itself, or is another one in another
            process.
        ConfigError: both ``group`` and ``engine``, which has its own.
    """

    def __init__(
        self, model: nn.Module, group: Any = None, engine: Engine | None = None, *, alike: bool = True
    ) -> None:
        check_model(model, splits=engine is not None and engine.world is not None)
        if group is not None and engine is not None:
            raise ConfigError("group= and engine= are both given; an engine has its group: engine(…, group=group)")
        self._model = model
        self._engine = Flat(processes.current(group)) if engine is None else engine
        if alike:
            tensors = [*model.named_parameters(), *model.named_buffers()]
            same_start(self._engine.processes, [(name, tensor) for name, tensor in tensors if not is_part(tensor)])
        # looking through a protocol takes longer than a micro-batch of a tiny model
        self._stages = engine if engine is not None and isinstance(engine, HasStages) else None
        self._per_worker = engine is not None and isinstance(engine, PerWorker)
        self.samples = 0
        self.noise = NoiseScale()
        if self._engine.world is not None or self._stages is not None:
            self.noise.unmeasured = UNMEASURED
        self.parameters: list[Tensor] = []
        self._sums: list[Tensor] = []
        self._weights: list[Divisor] = []
        self._report: weakref.ref[StepReport] | None = None
        self._begins: tuple[Any, Tensor] | None = None
        self._scale = 1.0
        self._first = 0  # samples of the window's first micro-batch
        self._first_norm: Tensor | None = None
        self.loss_scale: float | None = None
        """Of autocast in float16: multiplies every gradient until it is divided; a power of two."""
        self.apply_by: Callable[[Optimizer], None] = step_in_own_dtype

    def add(self, losses: Tensor | tuple[Any, Any], weights: Any = None) -> None:
        """Add the gradient of the sum of ``losses``; every element weighs 1, or what ``weights`` says.

        Args:
            losses: unreduced losses of any shape, or a scalar mean together with ``weights``.
            weights: a tensor of the losses' shape, or the number that a scalar mean stands for.

        Raises:
            LossError: a bare scalar, weights of another shape, or losses that depend on no parameter.
        """
        pair = (losses, weights) if weights is not None else losses
        loss_sum, weight = weighted_sum(pair)
        first = losses[0] if isinstance(losses, tuple | list) else losses
        samples = len(first) if first.ndim else 0
        if not self._sums:
            self.begin(list(self._model.parameters()), samples or 1)
        self.add_sum(loss_sum, weight, samples)

    def apply(self, optimizer: Optimizer, *, clip_norm: float | None = None, nonfinite: str = "raise") -> StepReport:
        """Divide by the total weight, clip, and step; a total weight of 0 changes nothing.

        Args:
            optimizer: any optimizer that steps without a closure.
            clip_norm: the largest 2-norm of the finished gradient (``torch.nn.utils.clip_grad_norm_``).
            nonfinite: what a NaN or infinity in the gradient does: "raise", "skip" or "allow".

        Raises:
            NonFiniteError: the gradient is not finite; the weights are as they were.
        """
        check_clip_norm(clip_norm)
        check_nonfinite(nonfinite)
        check_optimizer(optimizer)
        own = {id(parameter) for parameter in self._model.parameters()}
        check_held(
            optimizer,
            own,
            "the model that this accumulator was made for does not have; make it for a module that "
            "holds everything that is trained, e.g. GradientAccumulator(nn.ModuleList([model, loss]))",
        )
        if not self._sums:
            self.reset()
        return self.finish(optimizer, clip_norm=clip_norm, nonfinite=nonfinite, where="this step")

    def reset(self) -> None:
        """Forget what was added since the last ``apply``."""
        self.begin(list(self._model.parameters()), 1)

    # what Step calls: the same, with the counting done before

    def begin(self, parameters: list[Tensor], nominal: int) -> None:
        """Start a window from no gradients.

        Float16 gradients are scaled by a power of two near ``1 / nominal``, so that they stay as large as a mean.
        """
        report = self._report() if self._report is not None else None
        if report is not None:
            report.settle()
        self.parameters = parameters
        self._sums, self._weights, self.samples = [], [], 0
        self._first, self._first_norm = 0, None
        half = self.loss_scale is not None
        for parameter in parameters:
            parameter.grad = None
            half = half or parameter.dtype is torch.float16
        self._scale = (self.loss_scale or 1.0) * (2.0 ** -math.ceil(math.log2(max(nominal, 1))) if half else 1)
        sum_in_float32(parameters)
        self._engine.begin(parameters, self._model)

    def add_sum(self, loss_sum: Tensor, weight: Divisor | None, samples: int, last: bool = False) -> None:
        """Run backward on a sum and count its weight, unless that is None, being known to ``finish`` otherwise.

        ``last`` says that it is the window's last one, whose gradients may travel while backward is under way.
        """
        if not self._sums:
            self._first = samples if self.noise.due else 0
        elif len(self._sums) == 1 and self._first:
            self._first_norm = self._engine.own_norm()  # not before it is known that there are more
        if loss_sum.requires_grad:
            self._engine.backward(loss_sum, self._upstream(loss_sum), last)
        elif not (isinstance(weight, int | float) and weight == 0):
            raise LossError(
                "the loss depends on no parameter that requires gradients; "
                "is the model frozen, or was it called under torch.no_grad()?"
            )
        self._sums.append(loss_sum.detach())
        if weight is not None:
            self._weights.append(weight)
        self.samples += samples

    def add_outputs(
        self, pairs: Sequence[tuple[Tensor, Tensor]], loss_sum: Tensor, samples: int, last: bool = False
    ) -> None:
        """Run backward from outputs with their gradients (which hold ``scale``) and count ``loss_sum``."""
        if pairs:
            # The sum's gradient with respect to each output is the one that was given.
            surrogate = torch.stack([(output * gradient).sum() for output, gradient in pairs]).sum()
            self._engine.backward(surrogate, torch.ones_like(surrogate), last)
        self._sums.append(loss_sum)
        self.samples += samples

    def count(self, loss_sum: Tensor, weight: Divisor | None, samples: int) -> None:
        """Count a micro-batch whose backward runs elsewhere."""
        self._sums.append(loss_sum)
        if weight is not None:
            self._weights.append(weight)
        self.samples += samples

    def backward(self, loss_sum: Tensor) -> None:
        """Run backward on a sum that is counted elsewhere; more will follow."""
        self._engine.backward(loss_sum, self._upstream(loss_sum), False)

    @property
    def stands_in(self) -> bool:
        """Whether a process with fewer micro-batches has to make passes that count nothing."""
        return self._engine.lockstep and self._engine.stands_in

    def add_nothing(self, loss_sum: Tensor) -> None:
        """Run backward with no weight at all, since the others wait for it."""
        if loss_sum.requires_grad:
            self._engine.backward(loss_sum, torch.zeros_like(self._upstream(loss_sum)), False)

    @property
    def scale(self) -> float:
        """What every gradient is multiplied by until it is divided: a power of two, 1 unless there is float16."""
        return self._scale

    def _upstream(self, loss_sum: Tensor) -> Tensor:
        """The gradient that backward begins with: the scale, kept from one micro-batch to the next."""
        kept = self._begins
        if kept is None or kept[0] != (self._scale, loss_sum.dtype, loss_sum.device):
            key = (self._scale, loss_sum.dtype, loss_sum.device)
            kept = self._begins = (key, torch.full((), self._scale, dtype=loss_sum.dtype, device=loss_sum.device))
        return kept[1]

    def finish(
        self,
        optimizer: Optimizer,
        *,
        clip_norm: float | None,
        nonfinite: str,
        where: str,
        weight: Divisor | None = None,
        fixed_weight: float | None = None,
        first_weight: Callable[[int], Divisor | None] = lambda samples: None,
        error: BaseException | None = None,
    ) -> StepReport:
        """Add over the processes, divide, check, clip and step.

        ``weight`` is this process's, where it was counted before, and ``first_weight`` gives that of its first
        samples; ``fixed_weight`` is that of the whole batch, where it does not add up. ``error`` is what went wrong on
        this process: every process raises then.
        """
        total = float(_total(self._weights) if weight is None else weight)
        sums, samples, micro_batches, parameters = self._sums, self.samples, len(self._sums), self.parameters
        small: Tensor | float | None = (
            None if error is not None else self._first_mean(first_weight, fixed_weight is not None)
        )
        first = float(self._first)
        weights = self._weights
        self._sums, self._weights = [], []
        if self._together or self._engine.world is not None:
            own = _totals(sums, total, samples, micro_batches, small, first)
            if self._engine.sums_alone:
                own.each = _each(sums, weights)
            whole = self._engine.finish(own, error)
            sums, total = [torch.tensor(whole.loss, dtype=torch.float64)], whole.weight
            samples, micro_batches = whole.samples, whole.micro_batches
            small = math.sqrt(whole.small / whole.first) if whole.first else None
            first = whole.first / max(1.0, whole.firsts)
        self.noise.windows += 1  # not before: a window that is made again counts once
        if fixed_weight is not None and samples:
            total = fixed_weight
        if not math.isfinite(total):
            raise InputError(f"the weights of {where} add up to {total}; every weight must be finite")
        gradients = gradients_of(parameters)
        parts = gradients if self._engine.world is None else [local(gradient) for gradient in gradients]
        skipped = total == 0
        finite = skipped or divide_(parts, total * self._scale, check=nonfinite != "allow")
        norm: Tensor | None = None
        if self._stages is not None:  # at once, since every process takes part; a report may be read by one
            norm, finite = self._stages.agree(gradients, finite)
        elif self._engine.world is not None:
            norm, finite = agree(self._engine.world, gradients, finite)
        if not finite:
            if nonfinite == "raise":
                raise NonFiniteError(self.blame(where))
            skipped = True
        report = StepReport(sums, total, samples, micro_batches, skipped, gradients, self.noise)
        self._report = weakref.ref(report)
        report._norm = norm
        if not skipped:
            measured = small is not None and first < samples
            if norm is None and (clip_norm is not None or measured):
                report._norm = norm = norm_of(gradients)
            if norm is not None and small is not None and measured:
                # what is not divided by a weight that grows with the samples is a sum of theirs
                per_sample = 1.0 if fixed_weight is None else fixed_weight / samples
                self.noise.add(small, norm * per_sample, first, samples)
            if norm is not None and clip_norm is not None:
                clip_(parts, clip_norm, norm)
            self.apply_by(optimizer)
        return report

    def _first_mean(self, first_weight: Callable[[int], Divisor | None], of_samples: bool) -> Tensor | None:
        """The norm of the mean gradient of the first micro-batch; None where it says nothing."""
        if not self._first:
            return None
        if len(self._sums) == 1 and self._together:
            self._first_norm = self._engine.own_norm()
        if self._first_norm is None:
            return None
        weight: Divisor | None = self._first if of_samples else self._weights[0] if self._weights else None
        weight = first_weight(self._first) if weight is None else weight
        if weight is None or (not isinstance(weight, Tensor) and weight == 0):
            return None
        return self._first_norm / (weight * self._scale)

    @property
    def _together(self) -> bool:
        """Whether there is something to sum when all micro-batches have run."""
        return self._engine.processes.size > 1 or self._engine.sums_alone or self._per_worker

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the last report stays with the original."""
        return {**vars(self), "_report": None}

    def blame(self, where: str) -> str:
        """Return what is said of a gradient that is not finite."""
        names = {id(p): name for name, p in self._model.named_parameters()}
        for parameter in self.parameters:
            if parameter.grad is not None and not all_finite([local(parameter.grad)]):
                name = names.get(id(parameter), "a parameter of the loss")
                first = f"first in {name!r} of shape {tuple(parameter.shape)}"
                break
        else:
            first = "in parts that other processes hold"
        return (
            f"the gradient of {where} is not finite, {first}; the weights "
            "are as before the step. Lower the learning rate, clip, look at the data, or pass nonfinite='skip'"
        )


def _totals(
    sums: Sequence[Tensor], total: float, samples: int, micro_batches: int, small: Tensor | float | None, first: float
) -> Totals:
    """What this process brings, in one read of the device."""
    loss = torch.stack(list(sums)).sum(dtype=torch.float64) if sums else torch.zeros((), dtype=torch.float64)
    if small is None:
        return Totals(float(loss), total, samples, micro_batches)
    value, norm = torch.stack([loss, torch.as_tensor(small).to(loss)]).tolist()
    if not math.isfinite(norm):
        return Totals(value, total, samples, micro_batches)
    return Totals(value, total, samples, micro_batches, first * norm * norm, first, 1.0)


def _each(sums: Sequence[Tensor], weights: Sequence[Divisor]) -> list[tuple[float, float]]:
    """The loss and the weight of every micro-batch, in one read of the device; weight 0 where it is known otherwise."""
    if not sums:
        return []
    exact = [torch.as_tensor(value).to(sums[0].device, torch.float64) for value in (*sums, *weights)]
    read = torch.stack(exact).tolist()
    return list(zip(read[: len(sums)], read[len(sums) :] or [0.0] * len(sums), strict=True))


def _total(weights: Sequence[Divisor]) -> Divisor:
    numbers = [weight for weight in weights if not isinstance(weight, Tensor)]
    tensors = [weight for weight in weights if isinstance(weight, Tensor)]
    total: Divisor = math.fsum(numbers)
    return total + torch.stack(tensors).sum(dtype=torch.float64) if tensors else total
