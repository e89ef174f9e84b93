"""One exact optimizer step over a whole batch, however it is cut into micro-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core import processes, tree
from wholebatch.core.device import device_of
from wholebatch.core.errors import ConfigError, InputError
from wholebatch.core.processes import Processes
from wholebatch.step import losses, placing, redo
from wholebatch.step.alike import facts_of_training, require_alike
from wholebatch.step.attempts import Attempts
from wholebatch.step.bitwise import Bitwise, Moved
from wholebatch.step.bitwise_options import check_bitwise, check_model_bitwise
from wholebatch.step.costs import Cost
from wholebatch.step.cutting import Cutting, Piece
from wholebatch.step.engine import Engine, HasStages
from wholebatch.step.fitting import Fitting
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.logical import by_worker, own_workers, per_worker_of
from wholebatch.step.loss_scale import LossScale
from wholebatch.step.masters import lowered
from wholebatch.step.micro_batch_size import Finder, MicroBatchSize
from wholebatch.step.options import (
    check_clip_norm,
    check_model,
    check_nonfinite,
    check_optimizer,
    check_options,
    check_split,
    check_tokens,
    parameters_beside,
    scheduler_of,
)
from wholebatch.step.over_processes import same_start
from wholebatch.step.parts import is_part
from wholebatch.step.passes import Passes
from wholebatch.step.pinned import check_workspace, pinned, pinned_facts
from wholebatch.step.report import StepReport
from wholebatch.step.window import with_last
from wholebatch.sums import NoiseScale


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
        micro_batch: samples of one forward/backward; "auto" finds it from the memory there is and the throughput
            (:mod:`wholebatch.step.micro_batch_size`). Where memory runs out, the step is made again with a smaller one.
        micro_batch_tokens: what one forward/backward may cost, in place of ``micro_batch``: as many samples as have
            so many tokens together, at least one. Tokens are those of an ``attention_mask``, else the targets that
            are not ignored.
        micro_batch_cost: ``cost(batch)`` gives what each sample costs, in place of its tokens.
        clip_norm: the largest 2-norm of the finished gradient.
        precision: "fp32" (the model's own dtype), "tf32", "bf16" or "fp16" (autocast, the latter with a scaled loss),
            or "bf16-true" (parameters in bfloat16, which the model then has); see :mod:`wholebatch.step.precision`.
            Gradients are summed in float32 at least.
        bitwise: every bit of the weights is a function of code, data, seed, batch and ``micro_batch`` (which has to be
            named), on any number of processes; each has whole micro-batches. Batch norm normalises each micro-batch,
            and every draw of torch's generators is seeded from (seed, step, position).
        dropout: "keyed" (masks are a function of seed, step and position) or "native" (torch's own: the
            result then depends on the micro-batch).
        nonfinite: what a NaN or infinity in the gradient does: "raise", "skip" (as weight 0, counted in
            ``skipped``) or "allow".
        seed: of the keyed draws.
        schedule: a function of the number of applied steps, or an ``LRScheduler``; stepped once per applied step.
        batch_axis: the samples' axis: an int, or one per key or place; None for what is passed whole.
        group: torch.distributed's process group.
        engine: how gradients are summed over processes (:func:`wholebatch.parallel.engine`); after backward, if none.
        threads: of torch within a bitwise step, whose bits depend on them: 1, if None.

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
        micro_batch_tokens: int | None = None,
        micro_batch_cost: Cost | None = None,
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
        threads: int | None = None,
    ) -> None:
        if bitwise:
            check_bitwise(micro_batch, micro_batch_tokens, threads, engine)
        elif threads is not None:
            raise ConfigError(f"threads={threads!r} belongs to bitwise=True; otherwise call torch.set_num_threads")
        self._world = None if engine is None else engine.world
        self._lockstep = self._world if engine is not None and engine.lockstep else None
        self._processes = processes.current(group) if engine is None else engine.processes
        self._bitwise: Bitwise | None = None
        if bitwise:
            check_model(model)
            self._bitwise = engine = Bitwise(self._processes, model)
            group = None
        self.threads = threads or 1
        self._accumulator = GradientAccumulator(model, group, engine, alike=False)  # at the end of this, with the rest
        self._looks_ahead = engine is not None and engine.overlaps
        check_optimizer(optimizer)
        check_clip_norm(clip_norm)
        check_nonfinite(nonfinite)
        check_options(micro_batch, precision, dropout, seed)
        check_tokens(micro_batch, micro_batch_tokens, micro_batch_cost)
        check_split(model, engine, precision)
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
        if bitwise:
            check_model_bitwise(model, self._loss)
            check_workspace(device_of(model))
        if self._lockstep is not None and self._loss.coupled:
            raise ConfigError("a WholeBatchLoss is not available in this version where the model is split like this")
        self._axis = batch_axis
        self._schedule = scheduler_of(schedule, optimizer)
        self._others = parameters_beside(optimizer, model, self._loss.module)
        self._groups = len(optimizer.param_groups)
        how = {"seed": seed, "keyed": dropout == "keyed", "precision": precision, "axis": batch_axis}
        self._stages = engine if engine is not None and isinstance(engine, HasStages) else None
        self._passes = self._passes_of(engine, how)
        self._scaling = LossScale() if precision == "fp16" else None
        self._half = self._scaling is not None or any(p.dtype is torch.float16 for p in model.parameters())
        modules = [model] if self._loss.module is None else [model, self._loss.module]
        self._masters = lowered(modules, optimizer) if precision == "bf16-true" else None
        if self._masters is not None:
            self._accumulator.apply_by = self._masters.step
        self.size = MicroBatchSize(micro_batch, micro_batch_tokens, micro_batch_cost, exactly=bitwise)
        self._cutting = Cutting(self._loss, batch_axis, self.size, self._passes, ahead=self._lockstep is not None)
        self._per_worker = per_worker_of(engine, self._loss, self.align, self._half)
        finder = Finder(model, optimizer, self._loss, self._passes, precision, batch_axis)
        in_parts = self._world is not None or self._stages is not None
        self._fitting = Fitting(self.size, finder, self._processes, self._loss, batch_axis, in_parts)
        self._attempts = Attempts(
            modules,
            self._processes,
            self._passes,
            self._accumulator,
            self._cutting,
            finder,
            self._bitwise,
            redoes=not in_parts and self._per_worker is None,
            travels=self._processes.size > 1 or self._world is not None,
        )
        copies = {} if self._masters is None else self._masters.state_dict()
        alike = [*model.named_parameters(), *model.named_buffers(), *self._of_loss(), *copies.items()]
        same_start(self._processes, [(name, tensor) for name, tensor in alike if not is_part(tensor)])
        how |= {"clip_norm": clip_norm, "nonfinite": nonfinite}
        require_alike(self._processes, lambda: facts_of_training(model, optimizer) | how)

    def __call__(self, batch: Any, position: int | None = None) -> StepReport:
        """Make one step over ``batch``, or over a window of ``MicroBatches``.

        Args:
            batch: a tensor, or any nesting of tuples, lists, mappings and dataclasses of tensors.
            position: place of the first sample in the whole batch (0).

        Raises:
            BatchError: tensors of different lengths, or no tensor at all.
            LossError: a loss that cannot be summed exactly.
            NonFiniteError: the gradient is not finite; the weights are as before.
            OutOfMemoryError: one sample alone does not fit, or a window that is used up would have to be made again.
        """
        if self._bitwise is None:
            return self._call(batch, position)
        with pinned(self.threads, self.precision):
            return self._call(batch, position)

    def _call(self, batch: Any, position: int | None) -> StepReport:
        self._fitting.find(batch)
        self._passes.watched = 0
        report = self._attempts.make(lambda listed: self._window(listed, position), batch, f"step {self.calls + 1}")
        if self._scaling is not None:
            self._scaling.follow(report, self.nonfinite, lambda: self._accumulator.blame(f"step {self.calls}"))
        if report.skipped:
            self.skipped += 1
            self._passes.norms.forget()
        else:
            self.applied += 1
            self._passes.norms.apply()
            if self._bitwise is not None:
                self._bitwise.move_statistics()
            if self._schedule is not None:
                self._schedule.step()
        return report

    def _window(self, batch: Any, position: int | None) -> StepReport:
        """One window from its beginning to its end.

        Raises:
            RanOut: on every process, if memory ran out on any of them; nothing was applied.
        """
        self.size.most = self.size.widest = 0
        cut, error = self._attempts.of(lambda: self._cutting.cut(batch, self._fitting.find))
        weight, samples, pieces = (None, 0, iter(())) if error is not None else cut
        if self._bitwise is not None:
            weight = None  # of each micro-batch by itself
        pieces, position, nominal = self._placed(pieces, samples, position, error, getattr(batch, "edges", None))
        if len(self.optimizer.param_groups) != self._groups:
            self._others = parameters_beside(self.optimizer, self.model, self._loss.module)
            self._groups = len(self.optimizer.param_groups)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self._scaling is not None:
            self._accumulator.loss_scale = self._scaling.value
        self._accumulator.begin(parameters + self._others if self._others else parameters, nominal)
        self._passes.step = self.calls
        if error is None:
            marked = with_last(pieces) if self._looks_ahead else ((*piece, False) for piece in pieces)
            if self._lockstep is not None:  # the others wait within the model: only this process's end can tell them
                self._passes.run(marked, position, weight is None, samples)
            else:
                _, error = self._attempts.of(lambda: self._passes.run(marked, position, weight is None, samples))
        else:
            self._passes.norms.stay_away()
        if isinstance(error, redo.RanOut) and self._processes.size == 1:
            raise error
        self.calls += 1
        try:
            return self._accumulator.finish(
                self.optimizer,
                clip_norm=self.clip_norm,
                nonfinite=self.nonfinite if self._scaling is None else "skip",
                where=f"step {self.calls}",
                weight=weight,
                fixed_weight=1.0 if self._loss.coupled else self._loss.whole_weight,
                first_weight=lambda first: self._cutting.weight_of_first(batch, weight, first),
                error=error,
            )
        except (redo.RanOut, Moved):
            self.calls -= 1
            raise

    def _placed(
        self, pieces: Iterator[Piece], samples: Any, position: int | None, error: Exception | None, edges: Any
    ) -> tuple[Iterator[Piece], int | None, int]:
        """The micro-batches, this process's place in the whole batch (None: unknown), and its samples, nominally."""
        who = self._processes
        if self._bitwise is not None:
            size = int(self.micro_batch)
            return pieces, *placing.place_whole_micro_batches(who, self._bitwise, size, samples, position, error)
        if self._lockstep is not None:
            read, error = self._attempts.of(lambda: list(pieces)) if error is None else (None, error)
            stands_in = self._accumulator.stands_in
            pieces = placing.as_many_as_the_others(self._lockstep, read or [], error, stands_in, self._axis)
        if self._per_worker is not None:
            found, begin = placing.place_workers(who, self._per_worker.workers, samples, position, error, edges)
            self._cutting.edges = found
            first = own_workers(who, self._per_worker.workers).start
            return by_worker(pieces, found, first, self._per_worker.worker, self._axis), begin, 1
        if who.size == 1:
            return pieces, position or 0, samples or 1
        if self._passes.places or (position is not None and not self._half):
            return pieces, position, 1
        return pieces, *placing.place(who, samples, position, error)

    def fit(self, batch: Any, samples: int) -> int | None:
        """Find the micro-batch that "auto" takes for batches like this one; every process calls it.

        A step does so when it is called for the first time. Nothing of what is tried stays.

        Args:
            batch: some samples, of the whole batch or like them.
            samples: how many of them are this process's part of the whole batch; 0 where it has none to show.

        Returns:
            The least that a process found; None where all of its part may be taken at once in every process.
        """
        return self._fitting.together(batch, samples)

    def _passes_of(self, engine: Engine | None, how: dict[str, Any]) -> Any:
        """What runs the micro-batches."""
        if self._stages is not None:
            own = {"optimizer": self.optimizer, "micro_batch": self.micro_batch}
            return self._stages.passes(self.model, self._loss, self._accumulator, **how, **own)
        more: dict[str, Any] = {"overlaps": self._looks_ahead, "bitwise": self._bitwise}
        return Passes(self.model, self._loss, self._accumulator, self._processes, **how, **more)

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Within it the model and the optimizer's state are whole on every process, which all have to call.

        That is always so but with a pipeline, whose processes have a part each. What is loaded within it stays.
        """
        return contextlib.nullcontext() if self._stages is None else self._stages.whole()

    def gather(self) -> None:
        """Make model and optimizer state whole on every process until the next step; all of them call it."""
        if self._stages is not None:
            self._stages.gather()

    def share_buffers(self) -> None:
        """Make the buffers of all processes, each of which has seen its own part, those of the first one."""
        if self._stages is not None:
            self._stages.share_buffers()
            return
        for buffer in self.model.buffers():
            self._processes.copy_from_first_(buffer)

    @property
    def loss_scale(self) -> float:
        """What a float16 loss is multiplied by, a power of two; 1 with another precision."""
        return 1.0 if self._scaling is None else self._scaling.value

    @property
    def processes(self) -> Processes:
        """The processes that share a batch's samples."""
        return self._processes if self._stages is None else self._stages.samples

    @property
    def split(self) -> bool:
        """Whether this process holds parts of the model alone."""
        return self._world is not None

    @property
    def align(self) -> int:
        """What batches are cut at multiples of: for grouped batch norms (:func:`convert_batchnorm`), or in bitwise mode
        the micro-batch; 1 otherwise."""
        return int(self.micro_batch) if self._bitwise is not None else self._passes.norms.align

    @property
    def bitwise(self) -> bool:
        """Whether every bit is a function of the data and the seed."""
        return self._bitwise is not None

    def pinned_facts(self) -> dict[str, Any]:
        """Return, in plain words, what the bits depend on beside code, data, seed and batch; empty in exact mode."""
        if self._bitwise is None:
            return {}
        return pinned_facts(self.model, self.optimizer, int(self.micro_batch), self.threads)

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
            "bitwise": self._bitwise,
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

    # several processes ------------------------------------------------------------------------------

    def _of_loss(self) -> list[tuple[str, Tensor]]:
        module = self._loss.module
        return [] if module is None else [(f"loss.{name}", tensor) for name, tensor in module.named_parameters()]
