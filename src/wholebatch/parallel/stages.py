"""The micro-batches of a step through the stages of a pipeline, by ``torch.distributed.pipelining``.

What torch asks for is given to it: micro-batches of one size (the last one is filled up with samples that are cut off
again before the loss), as many as the schedule needs (the rest are empty), a loss that is a sum. The inputs do not
travel: the first stage gets the number of a micro-batch and the last one makes the sum of its losses itself.

A window begins with an exchange of what every process has, so that one that has failed, or has something of another
shape, is known to all before anybody waits for it. What a stage raises later is kept until the window is through, with
zeros in its place, and then raised in every process.
"""

from __future__ import annotations

import functools
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.core.errors import BatchError, InputError, LossError, PeerError
from wholebatch.parallel.balance import measured_cuts
from wholebatch.parallel.leaves import Leaves, flat, rebuilt
from wholebatch.parallel.traced import Part, Traced
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.grouped_norm import GroupedNorm
from wholebatch.step.losses import LossCall, targets_of
from wholebatch.step.passes import Pieces
from wholebatch.step.precision import autocast, switches
from wholebatch.step.promise import Promise
from wholebatch.step.stage_draws import StageDraws
from wholebatch.step.unkeyed import PowerIterations, unchanged_buffers

if TYPE_CHECKING:
    from wholebatch.parallel.pipeline import PipelineEngine

PER_STAGE = 4  # micro-batches of a window that nobody has cut
_FAILED = -1
_KEPT = 4  # schedules, for so many different numbers of micro-batches

Window = list[tuple[int, int, Any]]  # start, samples, piece


class PipelinePasses:
    """Runs forward and backward of every micro-batch of a window through the stages of this process.

    It stands where :class:`wholebatch.step.passes.Passes` stands with a whole model.
    """

    places = True  # it finds the samples' places by itself
    draws = None  # nothing is replaced while somebody's loader is asked for a piece

    def __init__(
        self,
        engine: PipelineEngine,
        model: nn.Module,
        loss: LossCall,
        accumulator: GradientAccumulator,
        *,
        optimizer: Optimizer,
        micro_batch: int | str,
        seed: int,
        keyed: bool,
        precision: str,
        axis: tree.Axis,
    ) -> None:
        _refuse(model, loss, precision)
        self.model, self.step = model, 0
        self.watch: Callable[..., None] | None = None
        self.norms = _NoNorms(self._tell_failure)
        self.promise = Promise(model, says=engine.data.rank == 0 and engine.own[0] == 0)
        self._engine, self._loss, self._accumulator, self._optimizer = engine, loss, accumulator, optimizer
        self._micro_batch, self._precision, self._axis = micro_batch, precision, axis
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._draws = StageDraws(seed, self._device) if keyed else None
        self._divided = False
        self._signature: int | None = None
        self._stages: dict[int, _Stage] = {}
        self._schedules: dict[int, Any] = {}
        self._cuttable = True
        self._size = 0  # samples of a micro-batch, filled up
        self._window: Window = []
        self._position, self._weigh = 0, False
        self._error: Exception | None = None

    # a window -----------------------------------------------------------------------------------------

    def run(self, pieces: Pieces, position: int | None, weigh: bool, samples: int | None = None) -> None:
        """Run all micro-batches of a window; see :meth:`wholebatch.step.passes.Passes.run`."""
        try:
            window = self._cut([(start, count, piece) for start, count, piece, _ in pieces])
            signature = self._sign(window)
        except Exception:
            self._tell_failure()
            raise
        count = sum(count for _, count, _ in window)
        new = bool(window) and signature != self._signature
        counts, news = self._exchange(count, new)
        if counts is None:
            return  # somebody has failed, and all learn why at the end
        self._position = sum(counts[: self._engine.samples.rank]) if position is None else position
        self._weigh, self._window = weigh, window
        if any(news):
            self._prepare(news[self._engine.samples.rank] and bool(window), signature)
        if window:
            with switches(self._precision):
                self._run()

    def _cut(self, window: Window) -> Window:
        """Cut a window that is one piece where nobody said how."""
        if self._micro_batch != "auto" or len(window) != 1:
            return window
        start, samples, piece = window[0]
        size = -(-samples // (PER_STAGE * self._engine.count)) or 1
        bounds = [(first, min(first + size, samples)) for first in range(0, samples, size)]
        return [
            (start + first, stop - first, tree.cut(piece, first, stop, samples, self._axis)) for first, stop in bounds
        ]

    def _sign(self, window: Window) -> int:
        """What the stages and their shapes depend on, as a number."""
        self._size_now = max((count for _, count, _ in window), default=0)
        if not window:
            return 0
        shapes = [(name, str(of.dtype), of.shape[:axis], of.shape[axis + 1 :]) for name, of, axis in self._arrays(window)]
        modes = [(module.training, getattr(module, "p", None)) for module in self.model.modules()]
        return zlib.crc32(repr((self._size_now, shapes, modes)).encode())

    def _arrays(self, window: Window) -> list[tuple[str, Any, int]]:
        return list(tree.arrays(window[0][2], self._axis))

    def _tell_failure(self) -> None:
        self._engine.processes.exchange(_FAILED)

    def _exchange(self, count: int, new: bool) -> tuple[list[int] | None, list[bool]]:
        """The samples of every part of the batch, and whether its stages have to be made anew; None: one has failed."""
        layout = self._engine.mesh.layout
        said = self._engine.processes.exchange(2 * count + new)
        if _FAILED in said:
            return None, []
        counts: list[list[int]] = [[] for _ in range(layout.data)]
        news = [False] * layout.data
        for rank, number in enumerate(said):
            place = layout.place(rank)["data"]
            counts[place].append(number // 2)
            news[place] |= bool(number % 2)
        for place, of_one in enumerate(counts):
            if len(set(of_one)) > 1:
                raise BatchError(
                    f"the processes of pipeline {place} gave {', '.join(map(str, of_one))} samples; all stages of a "
                    "pipeline are given the same part of the batch, in the same pieces"
                )
        return [of_one[0] for of_one in counts], news

    def _run(self) -> None:
        number = max(len(self._window), self._engine.count)
        schedule = self._schedule(number)
        self._error = None
        if self.promise.at_risk and (len(self._window) > 1 or self._engine.samples.size > 1):
            self.promise.cut()
        numbers = torch.arange(number)
        first = (numbers,) if 0 in self._stages else ()
        target = {"target": numbers} if self._engine.count - 1 in self._stages else {}
        if self._draws is None:
            schedule.step(*first, number=numbers, return_outputs=False, **target)
        else:
            self._draws.begin(self.step)
            with self._draws:
                schedule.step(*first, number=numbers, return_outputs=False, **target)
        if self._error is not None:
            raise self._error

    # one micro-batch in one stage ------------------------------------------------------------------------

    def forward(self, stage: _Stage, args: Sequence[Tensor], number: int) -> Any:
        """Run a stage on one micro-batch; what it raises is kept, and zeros stand in."""
        try:
            if self._error is None:
                return self._forward(stage, args, number)
        except Exception as error:
            self._error = error
        if stage.last:
            return torch.zeros((), device=self._device, requires_grad=True)
        return tuple(torch.zeros_like(leaf, requires_grad=leaf.is_floating_point()) for leaf in stage.leaving.tensors)

    def _forward(self, stage: _Stage, args: Sequence[Tensor], number: int) -> Any:
        void = number >= len(self._window)
        start, samples, piece = self._window[0 if void else number]
        start += void * number * self._size  # a place of its own, so that its draws are told from others
        piece = self._moved(piece)
        if self._draws is not None:
            self._draws.probe = functools.partial(self._probe, stage)
            self._draws.enter(stage.number, stage.before, self._position + start, self._size)
        with autocast(self._precision, self._device):
            if stage.number == 0:
                filled = tree.fill(piece, samples, self._size, self._axis) if samples < self._size else piece
                values = stage.values(*self._call_of(filled))
            else:  # a part may work in place, which a leaf does not allow
                values = rebuilt([arg.clone() for arg in args], stage.entering)
            result = stage.part(values)
            calls = 0 if self._draws is None else self._draws.calls
            if not stage.last:
                self._check(stage, calls, number)
                return tuple(flat(result).tensors)
            if void:
                return _nothing(result)
            if samples < self._size:
                result = self._without_rest(result, samples)
            loss_sum, weight = self._loss_of(result, piece, start, samples)
        self._check(stage, calls, number)
        self._accumulator.count(loss_sum.detach(), weight, samples)
        return loss_sum if loss_sum.requires_grad else loss_sum + _nothing(result)

    def _check(self, stage: _Stage, calls: int, number: int) -> None:
        """See that the masks were those of one process, and say what was drawn beside them."""
        if self._draws is None:
            return
        if calls != stage.calls:
            raise InputError(
                f"stage {stage.number} made {calls} calls of dropout for one micro-batch and {stage.calls} for another, "
                "so the masks of later stages are not known; let every micro-batch make the same calls"
            )
        if number == 0 and not self.promise.knows_of_draws() and self._draws.moved():
            names = [f"{type(module).__name__} of stage {stage.number}" for module in stage.part.modules()]
            self.promise.drawn(names or [f"stage {stage.number}"])

    def _loss_of(self, output: Any, piece: Any, start: int, samples: int) -> tuple[Tensor, Any]:
        stub = _Answers(output)
        result = self._loss.forward(stub, piece)
        if stub.calls != 1:
            raise LossError(f"the loss calls the model {stub.calls} times; in a pipeline it runs once, so call it once")
        loss_sum, weight = self._loss.summed(result, piece, start, samples, self._weigh)
        if self.watch is not None and self._loss.shows_output:
            self.watch(tree.map_tensors(Tensor.detach, result), *targets_of(piece))
        return loss_sum, weight

    def _call_of(self, piece: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the loss calls the model with."""
        before = 0 if self._draws is None else self._draws.calls
        stub = _Asks()
        try:
            self._loss.forward(stub, piece)
        except _Asked as asked:
            if self._draws is not None and self._draws.calls != before:
                raise LossError("the loss draws dropout before it calls the model; do so inside the model") from None
            return asked.call
        raise LossError("the loss does not call the model")

    def _without_rest(self, output: Any, samples: int) -> Any:
        if not self._cuttable:
            raise BatchError(
                f"a micro-batch of {samples} samples would have to be filled up to {self._size}, but samples are not "
                "axis 0 of every output of the model; choose a micro_batch that divides the batch"
            )
        return tree.cut(output, 0, samples, self._size)

    def _moved(self, piece: Any) -> Any:
        return piece if self._device.type == "cpu" else tree.to_device(piece, self._device)

    # making the stages ------------------------------------------------------------------------------------

    def _prepare(self, new: bool, signature: int) -> None:
        """Cut the model, where it is not, and look at what goes through it; all processes call it.

        Raises:
            InputError: it failed, in this process or another one.
        """
        error: Exception | None = None
        try:
            if not self._divided:
                self._divide()
        except Exception as caught:
            error = caught
        self._agree(error)
        try:
            if new:
                self._make_stages()
                self._look()
                self._signature = signature
        except Exception as caught:
            self._signature, error = None, caught
        self._agree(error)

    def _agree(self, error: Exception | None) -> None:
        said = self._engine.first_said(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        if said:
            raise PeerError(f"another process failed: {said}")

    def _traced(self, cuts: Sequence[str]) -> tuple[Traced, list[Any]]:
        start, samples, piece = max(self._window, key=lambda one: one[1])
        args, kwargs = self._call_of(self._moved(piece))
        traced = Traced(self.model, args, kwargs, cuts)
        return traced, traced.values(args, kwargs)

    def _divide(self) -> None:
        """Agree on where to cut, by the first process that has samples; then keep what is this process's."""
        engine = self._engine
        has = [bool(number) for number in engine.processes.exchange(len(self._window))]
        owners, error = None, None
        if has.index(True) == engine.processes.rank:
            try:
                traced, values = self._traced(engine.cuts or ())
                engine.cuts = engine.cuts or measured_cuts(traced, values, engine.count)
                owners = self._owners(self._parts(traced))
            except Exception as caught:
                error = caught
        said = engine.processes.gather((engine.cuts, owners, error and f"{type(error).__name__}: {error}"))
        engine.cuts, owners, reason = said[has.index(True)]
        if error is not None:
            raise error
        if reason is not None:
            raise PeerError(f"process {has.index(True)} failed: {reason}")
        assert owners is not None
        engine.divide(self._modules(), owners, self._optimizer)
        self._divided = True

    def _modules(self) -> list[nn.Module]:
        return [self.model] if self._loss.module is None else [self.model, self._loss.module]

    def _parts(self, traced: Traced) -> list[Part]:
        cuts = self._engine.cuts
        assert cuts is not None
        places = [0, *(traced.place_of(cut) for cut in cuts), len(traced.steps)]
        if sorted(set(places)) != places:
            raise InputError(f"cuts: {cuts} are not in the order in which the model runs, or leave a stage empty")
        return [traced.part(start, stop) for start, stop in zip(places, places[1:], strict=False)]

    def _owners(self, parts: Sequence[Part]) -> list[list[int]]:
        """The processes of the pipeline that need each tensor; those of the loss are of the last stage."""
        needed: dict[int, set[int]] = {}
        for stage, part in enumerate(parts):
            for tensor in part.tensors():
                needed.setdefault(id(tensor), set()).add(self._engine.process_of(stage))
        last = self._engine.process_of(self._engine.count - 1)
        if self._loss.module is not None:
            for tensor in (*self._loss.module.parameters(), *self._loss.module.buffers()):
                needed.setdefault(id(tensor), set()).add(last)
        return [sorted(needed.get(id(tensor), {0})) for tensor in self._engine.tensors_of(self._modules())]

    def _make_stages(self) -> None:
        traced, _ = self._traced(self._engine.cuts or ())
        parts = self._parts(traced)
        self._stages = {
            number: _Stage(number, parts[number], number == len(parts) - 1, traced.values) for number in self._engine.own
        }
        self._schedules.clear()
        self._size = self._size_now

    def _look(self) -> None:
        """Send a micro-batch through the stages, for the shapes between them and the keyed calls in each.

        Then another one with fewer samples, and one without the first, which tell where in a tensor the samples are.
        """
        samples = self._size
        piece = next(piece for _, count, piece in self._window if count == samples)
        moved = self._moved(piece)
        looks: dict[tuple[int, int], Any] = {(0, samples): moved}
        if samples > 1:
            looks[0, samples - 1] = tree.cut(moved, 0, samples - 1, samples, self._axis)
            looks[1, samples] = tree.cut(moved, 1, samples, samples, self._axis)
        else:
            looks[0, 2] = tree.double(moved, self._axis)
        self._error = None
        lengths = [self._look_at(bounds, part, bounds == (0, samples)) for bounds, part in looks.items()]
        if self._error is not None:
            raise self._error
        other = samples - 1 if samples > 1 else 2
        self._cuttable = lengths[:2] == [[samples] * len(lengths[0]), [other] * len(lengths[0])]
        for stage in self._stages.values():
            if not stage.calls:
                stage.looks.clear()

    def _look_at(self, bounds: tuple[int, int], piece: Any, whole: bool) -> list[int]:
        """Send ``piece`` through; return the lengths of what the last stage gives, where this process has it.

        A stage that fails says so to the next one, which goes on to receive: nobody waits for what does not come.
        """
        lengths: list[int] = []
        engine, said = self._engine, _Said(None, 0, None)
        for number, stage in sorted(self._stages.items()):
            if number and engine.process_of(number - 1) != engine.pipe.rank:
                said = self._receive(engine.process_of(number - 1))
            failed = said.failed or (self._error and str(self._error))
            if failed is None:
                try:
                    values = self._entering(stage, piece, said.leaves)
                    result, calls = self._looked(stage, values, said.before if whole else stage.before)
                    if whole:
                        stage.before, stage.calls, stage.entering = said.before, calls, flat(values)
                        stage.leaving = Leaves() if stage.last else flat(result)
                    stage.looks[bounds] = values
                    lengths = _lengths(result) if stage.last else lengths
                    said = _Said(None if stage.last else flat(result), said.before + calls, None)
                except Exception as error:
                    self._error, failed = error, f"{type(error).__name__}: {error}"
            if failed is not None:
                said = _Said(None, 0, failed)
                self._error = self._error or PeerError(f"another stage failed: {failed}")
            if not stage.last and engine.process_of(number + 1) != engine.pipe.rank:
                self._send(said, engine.process_of(number + 1))
        return lengths

    def _entering(self, stage: _Stage, piece: Any, leaves: Leaves | None) -> list[Any]:
        if stage.number == 0:
            return stage.values(*self._call_of(piece))
        assert leaves is not None
        return rebuilt([tensor.to(self._device) for tensor in leaves.tensors], leaves)

    def _looked(self, stage: _Stage, values: list[Any], before: int) -> tuple[Any, int]:
        """What a stage gives without drawing, and its keyed calls."""
        if self._draws is None:
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                return self._run_part(stage, values), 0
        with self._draws:
            return self._draws.look(before, lambda: self._run_part(stage, values))

    def _probe(self, stage: _Stage, first: int, stop: int) -> None:
        """Run a stage on the samples ``first … stop`` of a micro-batch for what its keyed calls see."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reentrant checkpointing says that nothing needs gradients here
            self._run_part(stage, stage.looks[first, stop])

    def _run_part(self, stage: _Stage, values: list[Any]) -> Any:
        """What a stage gives, with nothing changed and nothing to be kept for backward."""
        modules = nn.ModuleList(stage.part.modules())
        try:
            with torch.no_grad(), autocast(self._precision, self._device), unchanged_buffers(modules):
                return stage.part(tree.map_tensors(torch.clone, values))
        finally:
            torch.clear_autocast_cache()  # casts of weights made here know no gradients

    def _send(self, said: _Said, to: int) -> None:
        leaves = None if said.leaves is None else said.leaves.on_cpu()
        distributed.send_object_list(
            [_Said(leaves, said.before, said.failed)], group=self._engine.pipe.group, group_dst=to
        )

    def _receive(self, source: int) -> _Said:
        found: list[Any] = [None]
        distributed.recv_object_list(found, group=self._engine.pipe.group, group_src=source)
        said: _Said = found[0]
        return said

    def _schedule(self, number: int) -> Any:
        """Torch's schedule for so many micro-batches; buffers are made for each number."""
        if number not in self._schedules:
            if len(self._schedules) >= _KEPT:
                self._schedules.pop(next(iter(self._schedules)))
            self._schedules[number] = self._new_schedule(number)
        return self._schedules[number]

    def _new_schedule(self, number: int) -> Any:
        from torch.distributed.pipelining import PipelineStage
        from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

        engine, made = self._engine, []
        for stage in self._stages.values():
            scalar = torch.zeros((), device=self._device, requires_grad=True)
            made.append(
                PipelineStage(
                    _StageModule(self, stage),
                    stage.number,
                    engine.count,
                    self._device,
                    input_args=(torch.arange(1),) if stage.number == 0 else _like(stage.entering),
                    output_args=(scalar,) if stage.last else _like(stage.leaving),
                    group=engine.pipe.group,
                )
            )
        kind = get_schedule_class(engine.schedule)
        stages = made[0] if issubclass(kind, PipelineScheduleSingle) else made
        return kind(stages, number, loss_fn=self._scaled, scale_grads=False)

    def _scaled(self, loss_sum: Tensor, target: Tensor) -> Tensor:
        return loss_sum * self._accumulator.scale


class _Said(NamedTuple):
    """What one stage tells the next while it is looked at what goes through."""

    leaves: Leaves | None
    before: int  # keyed calls so far
    failed: str | None


class _Stage:
    """One stage of this process, and what was found out about it."""

    def __init__(
        self, number: int, part: Part, last: bool, values: Callable[[Sequence[Any], Mapping[str, Any]], list[Any]]
    ) -> None:
        self.number, self.part, self.last, self.values = number, part, last, values
        self.before = self.calls = 0  # keyed calls of the stages before it, and of its own
        self.entering = self.leaving = Leaves()
        self.looks: dict[tuple[int, int], list[Any]] = {}


class _StageModule(nn.Module):
    """What torch calls: it has the stage's modules and parameters."""

    def __init__(self, passes: PipelinePasses, stage: _Stage) -> None:
        super().__init__()
        self.parts = nn.ModuleList(stage.part.modules())
        own = {id(parameter) for parameter in self.parts.parameters()}
        fetched = [t for t in stage.part.tensors() if isinstance(t, nn.Parameter) and id(t) not in own]
        self.fetched = nn.ParameterList(fetched)
        self._run = passes.forward
        self._stage = stage

    def forward(self, *args: Tensor, number: Tensor) -> Any:
        return self._run(self._stage, args, int(number))


class _Asked(Exception):
    """The model would be called now."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = args, kwargs


class _Asks(nn.Module):
    """Stands for the model on the first stage: what is it called with?"""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _Asked(args, kwargs)


class _Answers(nn.Module):
    """Stands for the model on the last stage: its output is known."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output, self.calls = output, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._output


class _NoNorms:
    """Where grouped batch norms would be looked after."""

    align = 1

    def __init__(self, tell_failure: Callable[[], None]) -> None:
        self.stay_away = tell_failure

    def refuse_cut(self, size: int, samples: int) -> None: ...

    def forget(self) -> None: ...

    def apply(self) -> None: ...


def _refuse(model: nn.Module, loss: LossCall, precision: str) -> None:
    """Refuse what no pipeline here does exactly."""
    if precision in ("fp16", "bf16-true"):
        raise InputError(f"precision={precision!r} is not available with a pipeline; use 'fp32', 'tf32' or 'bf16'")
    if loss.coupled:
        raise InputError("a WholeBatchLoss is not available with a pipeline; use data parallel alone")
    grouped = next((name for name, layer in model.named_modules() if isinstance(layer, GroupedNorm)), None)
    if grouped is not None:
        raise InputError(f"the grouped batch norm {grouped!r} is not available with a pipeline; use layer or group norm")
    if PowerIterations(model).vectors:
        raise InputError("spectral norm is not available with a pipeline, whose micro-batches overlap")


def _nothing(output: Any) -> Tensor:
    """A zero that hangs on ``output``, whose gradient is zero whatever its values are."""
    found: list[Tensor] = []
    tree.map_tensors(found.append, output)
    floats = [tensor for tensor in found if tensor.is_floating_point()]
    if not floats:
        return torch.zeros((), requires_grad=True)
    zero = floats[0].reshape(-1)[:0].sum()
    return zero if zero.requires_grad else torch.zeros((), device=zero.device, requires_grad=True)


def _lengths(output: Any) -> list[int]:
    found: list[Tensor] = []
    tree.map_tensors(found.append, output)
    return [len(tensor) if tensor.ndim else 0 for tensor in found]


def _like(leaves: Leaves) -> tuple[Tensor, ...]:
    return tuple(
        tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in leaves.tensors
    )
