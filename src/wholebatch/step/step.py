"""One exact optimizer step over a whole batch, however it is cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core import cuts, processes, tree
from wholebatch.core.errors import BatchError, InputError, NonFiniteError
from wholebatch.step import losses
from wholebatch.step.engine import Engine
from wholebatch.step.gradient import GradientAccumulator, check_clip_norm, check_held, check_nonfinite, check_optimizer
from wholebatch.step.logical import FAILED, PerWorker, agree_on_edges, by_worker, own_workers, refuse_for_workers
from wholebatch.step.loss_scale import LossScale
from wholebatch.step.masters import Masters
from wholebatch.step.options import check_options, scheduler_of
from wholebatch.step.over_processes import raise_together, same_start
from wholebatch.step.passes import Passes
from wholebatch.step.precision import lower
from wholebatch.step.report import StepReport
from wholebatch.step.window import MicroBatches, with_last
from wholebatch.sums import NoiseScale

_UNKNOWN, _FAILED = -1, FAILED  # in place of a number of samples


class Step:
    """The optimizer step of the whole batch: gradients are summed over micro-batches and divided once.

    ``step(batch)`` cuts ``batch`` into micro-batches, runs forward and backward on each, divides the finished
    gradient by the total weight of all loss elements, clips it, and steps the optimizer. The update is that
    of the whole batch at once, up to the order of addition, whatever the micro-batch, dropout included.

    Args:
        model: any module; not wrapped in DistributedDataParallel or ``fully_shard``.
        optimizer: any ``torch.optim.Optimizer`` that steps without a closure.
        loss: a loss of ``torch.nn`` or ``torch.nn.functional``; another module, called ``loss(output, *targets)``;
            or a function ``f(model, batch)``. The last two give unreduced losses or a pair
            (:mod:`wholebatch.step.losses`). A :class:`WholeBatchLoss` couples the samples of the batch.
        micro_batch: samples of one forward/backward; "auto" takes the whole batch at once.
        clip_norm: the largest 2-norm of the finished gradient.
        precision: "fp32" (the model's own dtype), "tf32", "bf16" or "fp16" (autocast, the latter with a scaled loss),
            or "bf16-true" (parameters in bfloat16, which the model then has); see :mod:`wholebatch.step.precision`.
            Gradients are summed in float32 at least.
        bitwise: not available in this version.
        dropout: "keyed" (masks are a function of seed, step and position) or "native" (torch's own: the
            result then depends on the micro-batch).
        nonfinite: what a NaN or infinity in the gradient does: "raise", "skip" (as weight 0, counted in
            ``skipped``) or "allow".
        seed: of the keyed draws.
        schedule: a function of the number of applied steps, or an ``LRScheduler``; stepped once per applied step.
        batch_axis: the samples' axis: an int, or one per key or place; None for what is passed whole.
        group: torch.distributed's process group.
        engine: how gradients are summed over processes (:func:`wholebatch.parallel.engine`); after backward, if none.

    >>> model = nn.Linear(3, 2)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=2)
    >>> report = step((torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])))
    >>> report.samples, report.weight, report.micro_batches
    (5, 5.0, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        loss: Any,
        *,
        micro_batch: int | str = "auto",
        clip_norm: float | None = None,
        precision: str = "fp32",
        bitwise: bool = False,
        dropout: str = "keyed",
        nonfinite: str = "raise",
        seed: int = 0,
        schedule: Callable[[float], float] | LRScheduler | None = None,
        batch_axis: tree.Axis = 0,
        group: Any = None,
        engine: Engine | None = None,
    ) -> None:
        self._accumulator = GradientAccumulator(model, group, engine)
        self._processes = processes.current(group) if engine is None else engine.processes
        self._looks_ahead = engine is not None and engine.overlaps
        check_optimizer(optimizer)
        check_clip_norm(clip_norm)
        check_nonfinite(nonfinite)
        check_options(micro_batch, precision, bitwise, dropout, seed)
        self.model = model
        self.optimizer = optimizer
        self.micro_batch = micro_batch
        self.clip_norm = clip_norm
        self.nonfinite = nonfinite
        self.precision = precision
        self.seed = seed
        self.calls = 0
        self.applied = 0
        self.skipped = 0
        self._loss = losses.bind(loss)
        self._axis = batch_axis
        self._schedule = scheduler_of(schedule, optimizer)
        self._others = self._check_parameters()
        self._groups = len(optimizer.param_groups)
        self._passes = Passes(
            model,
            self._loss,
            self._accumulator,
            self._processes,
            seed=seed,
            keyed=dropout == "keyed",
            precision=precision,
            axis=batch_axis,
            overlaps=self._looks_ahead,
        )
        self._scaling = LossScale() if precision == "fp16" else None
        self._half = self._scaling is not None or any(p.dtype is torch.float16 for p in model.parameters())
        self._masters = self._lowered() if precision == "bf16-true" else None
        self._per_worker = self._engine_of_workers(engine)
        self._edges: tuple[int, ...] = ()  # where the parts of this process's logical workers are
        copies = {} if self._masters is None else self._masters.state_dict()
        same_start(
            self._processes, [*model.named_parameters(), *model.named_buffers(), *self._of_loss(), *copies.items()]
        )

    def __call__(self, batch: Any, position: int | None = None) -> StepReport:
        """Make one step over ``batch``, or over a window of ``MicroBatches``.

        Args:
            batch: a tensor, or any nesting of tuples, lists, mappings and dataclasses of tensors.
            position: place of the first sample in the whole batch (0).

        Raises:
            BatchError: tensors of different lengths, or no tensor at all.
            LossError: a loss that cannot be summed exactly.
            NonFiniteError: the gradient is not finite; the weights are as before.
        """
        cut, error = self._attempt(lambda: self._cut(batch))
        weight, samples, pieces = (None, 0, iter(())) if error is not None else cut
        position, nominal = self._place(samples, position, error, getattr(batch, "edges", None))
        if self._per_worker is not None:
            first = own_workers(self._processes, self._per_worker.workers).start
            pieces = by_worker(pieces, self._edges, first, self._per_worker.worker, self._axis)
        if len(self.optimizer.param_groups) != self._groups:
            self._others, self._groups = self._check_parameters(), len(self.optimizer.param_groups)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self._scaling is not None:
            self._accumulator.loss_scale = self._scaling.value
        self._accumulator.begin(parameters + self._others if self._others else parameters, nominal)
        self._passes.step = self.calls
        if error is None:
            marked = with_last(pieces) if self._looks_ahead else ((*piece, False) for piece in pieces)
            _, error = self._attempt(lambda: self._passes.run(marked, position, weight is None, samples))
        else:
            self._passes.norms.stay_away()
        self.calls += 1
        report = self._accumulator.finish(
            self.optimizer,
            clip_norm=self.clip_norm,
            nonfinite=self.nonfinite if self._scaling is None else "skip",
            where=f"step {self.calls}",
            weight=weight,
            fixed_weight=1.0 if self._loss.coupled else self._loss.whole_weight,
            first_weight=lambda first: self._weight_of_first(batch, weight, first),
            error=error,
        )
        if self._scaling is not None:
            self._rescale(report)
        if report.skipped:
            self.skipped += 1
            self._passes.norms.forget()
        else:
            self.applied += 1
            self._passes.norms.apply()
            if self._schedule is not None:
                self._schedule.step()
        return report

    def _lowered(self) -> Masters:
        """Make the model bfloat16, and let the optimizer move float32 copies."""
        modules = [self.model] if self._loss.module is None else [self.model, self._loss.module]
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        named = {name: p for name, p in nn.ModuleList(modules).named_parameters() if id(p) in held}
        masters = Masters(named, self.optimizer)
        lower(self.model)
        masters.begin()
        self._accumulator.apply_by = masters.step
        return masters

    def _rescale(self, report: StepReport) -> None:
        """Fit the scale of a float16 loss; what no scale can help is treated as anywhere."""
        assert self._scaling is not None
        if not report.skipped:
            self._scaling.fitted()
            return
        helped = not report.weight or (math.isfinite(float(report.loss_sum)) and self._scaling.overflowed())
        if not helped and self.nonfinite == "raise":
            raise NonFiniteError(self._accumulator.blame(f"step {self.calls}"))

    @property
    def loss_scale(self) -> float:
        """What a float16 loss is multiplied by, a power of two; 1 with another precision."""
        return 1.0 if self._scaling is None else self._scaling.value

    @property
    def align(self) -> int:
        """What batches are cut at multiples of, for grouped batch norms (:func:`convert_batchnorm`); 1 without any."""
        return self._passes.norms.align

    @property
    def noise(self) -> NoiseScale:
        """The estimate of the gradient noise scale so far."""
        return self._accumulator.noise

    @property
    def workers(self) -> int | None:
        """How many logical workers every batch is cut for; None where the processes are all there is."""
        return None if self._per_worker is None else self._per_worker.workers

    @property
    def mode(self) -> str | None:
        """In words, what logical workers do that changes the result; None where nothing does."""
        return None if self._per_worker is None else self._per_worker.mode

    @property
    def in_touch(self) -> bool:
        """Whether the processes met in the last step, so that what it reports is of all of them."""
        return True

    def show(self) -> StepReport | None:
        """Make the model what the logical workers have come to; all processes call it.

        Returns:
            The sums of steps that were not reported yet; None where there are none.
        """
        return None

    def collect(self) -> None:
        """Bring what ``state_dict`` needs of other processes to the first one; all processes call it before."""
        if self._per_worker is not None:
            self._per_worker.collect()

    @property
    def watch(self) -> Callable[..., None] | None:
        """Called with (output, *targets) of every micro-batch, the output detached; for metrics."""
        return self._passes.watch

    @watch.setter
    def watch(self, function: Callable[..., None] | None) -> None:
        self._passes.watch = function

    def state_dict(self) -> dict[str, Any]:
        """Return what the next step depends on, beside the model and the optimizer."""
        state: dict[str, Any] = {name: getattr(self, name) for name in ("seed", "calls", "applied", "skipped")}
        return state | {name: part.state_dict() for name, part in self._more().items()}

    def _more(self) -> dict[str, Any]:
        """What else has a state."""
        parts = {
            "noise": self.noise,
            "schedule": self._schedule,
            "loss_scale": self._scaling,
            "float32_weights": self._masters,
            "workers": self._per_worker,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            InputError: the state is of another seed, or has a schedule where this step has none (or vice versa).
        """
        if state["seed"] != self.seed:
            raise InputError(
                f"this state was taken with seed {state['seed']}, but the step has seed {self.seed}, which would draw "
                f"other masks; make it with seed={state['seed']}"
            )
        if ("schedule" in state) != (self._schedule is not None):
            raise InputError("the state and the step must both have a schedule, or neither; pass the same schedule=")
        self.calls, self.applied, self.skipped = state["calls"], state["applied"], state["skipped"]
        for name, part in self._more().items():
            if name in state:
                part.load_state_dict(state[name])

    # cutting ------------------------------------------------------------------------------------

    def _cut(self, batch: Any) -> tuple[Any, int | None, Iterator[tuple[int, int, Any]]]:
        """The weight where the targets tell it, the samples where they are known, and (start, samples, piece)."""
        if isinstance(batch, MicroBatches):
            return None, batch.samples, self._pieces_of_window(batch)
        batch = self._loss.cuttable(batch) if self._axis == 0 else batch
        samples = tree.count(batch, self._axis)
        return self._loss.ahead(batch) if self._axis == 0 else None, samples, self._pieces(batch, samples, 0)

    def _weight_of_first(self, batch: Any, weight: Any, first: int) -> Any:
        """The weight of the first samples of a batch whose weight was counted before it was cut."""
        batch = self._loss.cuttable(batch)
        if weight == batch[1].numel():  # every target weighs 1
            return first * (weight / len(batch[1]))
        return self._loss.ahead(tree.cut(batch, 0, first, tree.count(batch), 0))

    def _pieces(self, batch: Any, samples: int, start: int) -> Iterator[tuple[int, int, Any]]:
        size = samples if self.micro_batch == "auto" else int(self.micro_batch)
        if self._edges[-1:] == (samples,):
            for first, stop in cuts.bounds_between(self._edges, size):  # each worker's alike, whoever has them
                yield first, stop - first, tree.cut(batch, first, stop, samples, self._axis)
            return
        if samples <= size:
            if samples:
                yield start, samples, batch
            return
        norms = self._passes.norms
        norms.refuse_cut(size, samples)
        for first, stop in cuts.bounds(samples, size, bool(self._passes.promise.batch_norms), norms.align):
            yield start + first, stop - first, tree.cut(batch, first, stop, samples, self._axis)

    def _pieces_of_window(self, window: MicroBatches) -> Iterator[tuple[int, int, Any]]:
        start = 0
        for piece in self._outside(window):
            piece = self._loss.cuttable(piece) if self._axis == 0 else piece
            samples = tree.count(piece, self._axis)
            yield from self._pieces(piece, samples, start)
            start += samples
        if window.samples is not None and start != window.samples:
            raise BatchError(f"MicroBatches(samples={window.samples}) gave {start} samples")

    def _outside(self, pieces: MicroBatches) -> Iterator[Any]:
        """Ask for each piece under the caller's generators, which its loader may draw from."""
        iterator, draws = None, self._passes.draws
        while True:
            running = draws.pause() if draws is not None else None
            iterator = iter(pieces) if iterator is None else iterator  # a loader draws its seed here
            piece = next(iterator, self)
            if draws is not None:
                draws.resume(running)
            if piece is self:
                return
            yield piece

    # several processes ------------------------------------------------------------------------------

    def _attempt(self, work: Callable[[], Any]) -> tuple[Any, Exception | None]:
        """What ``work`` returns; with several processes an error is kept, so that it can travel to all of them."""
        if self._processes.size == 1:
            return work(), None
        try:
            return work(), None
        except Exception as error:
            return None, error

    def _place(
        self, samples: int | None, position: int | None, error: Exception | None, edges: tuple[int, ...] | None
    ) -> tuple[int | None, int]:
        """This process's place in the whole batch (None: unknown), and the samples of the whole batch, nominally.

        Without ``position`` that takes an exchange of counts, always: one on a condition would deadlock.
        """
        if self._per_worker is not None:
            return self._place_workers(samples, position, error, edges), 1
        if self._processes.size == 1:
            return position or 0, samples or 1
        if position is not None and not self._half:
            return position, 1
        counts = self._processes.exchange(_FAILED if error is not None else _UNKNOWN if samples is None else samples)
        if _FAILED in counts:
            raise_together(self._processes, error)
        before = None if _UNKNOWN in counts else sum(counts[: self._processes.rank])
        return before if position is None else position, max(1, sum(count for count in counts if count > 0))

    def _place_workers(
        self, samples: int | None, position: int | None, error: Exception | None, edges: tuple[int, ...] | None
    ) -> int:
        """This process's place, and where its logical workers' parts are: as ``edges`` says, or by an exchange."""
        assert self._per_worker is not None
        if edges is not None and position is not None:
            self._edges = edges
            return position
        given = samples if error is None else FAILED
        self._edges, place, _ = agree_on_edges(self._processes, self._per_worker.workers, given)
        if not self._edges:
            raise_together(self._processes, error)
        return place if position is None else position

    def _engine_of_workers(self, engine: Engine | None) -> PerWorker | None:
        """The engine, where it treats each logical worker's gradient by itself."""
        if not isinstance(engine, PerWorker):
            return None
        refuse_for_workers(engine.mode, self._loss.coupled, self.align, self._half)
        engine.fixed_weight = self._loss.whole_weight
        return engine

    def _of_loss(self) -> list[tuple[str, Tensor]]:
        module = self._loss.module
        return [] if module is None else [(f"loss.{name}", tensor) for name, tensor in module.named_parameters()]

    def _check_parameters(self) -> list[Tensor]:
        """The parameters of model and loss that the optimizer does not hold; it may hold no others."""
        own = {id(p): p for p in self.model.parameters()}
        if self._loss.module is not None:
            own.update({id(p): p for p in self._loss.module.parameters()})
        check_held(
            self.optimizer,
            own,
            "neither the model nor the loss has; its gradient would not be summed. Make the optimizer from this "
            "model's parameters()",
        )
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return [parameter for number, parameter in own.items() if number not in held]
