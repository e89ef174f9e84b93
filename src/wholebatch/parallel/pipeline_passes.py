"""The micro-batches of a step through the stages of a pipeline, by ``torch.distributed.pipelining``.

What torch asks for is given to it: micro-batches of one size (the last one is filled up with samples that are cut off
again before the loss), as many as the schedule needs (the rest are empty), a loss that is a sum. The inputs do not
travel: the first stage gets the number of a micro-batch, and the last one makes the sum of its losses itself.

A window begins with an exchange of what every process has, so that one that has failed, or has something of another
shape, is known to all before anybody waits for it. What a stage raises later is kept until the window is through, with
zeros in its place, and then raised in every process.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.core.device import device_of
from wholebatch.core.errors import BatchError, ConfigError, InputError, LossError, PeerError
from wholebatch.parallel.leaves import flat, rebuilt, received
from wholebatch.parallel.pipeline_schedule import Schedules
from wholebatch.parallel.stages import Stage, Stages, Window
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.grouped_norm import GroupedNorm
from wholebatch.step.losses import LossCall, targets_of
from wholebatch.step.passes import Pieces
from wholebatch.step.precision import autocast, switches
from wholebatch.step.promise import Promise
from wholebatch.step.stage_draws import StageDraws
from wholebatch.step.unkeyed import PowerIterations

if TYPE_CHECKING:
    from wholebatch.parallel.pipeline import PipelineEngine

PER_STAGE = 4  # micro-batches of a window that nobody has cut
_FAILED = -1


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
        self.watched, self.running = 0, None  # a window is never made again
        self.watch: Callable[..., None] | None = None
        self.norms = _NoNorms(lambda: engine.processes.exchange(_FAILED))
        self.promise = Promise(model, says=engine.data.rank == 0)
        self._engine, self._loss, self._accumulator = engine, loss, accumulator
        self._micro_batch, self._precision, self._axis = micro_batch, precision, axis
        self._device = device_of(model)
        self._draws = StageDraws(seed, self._device) if keyed else None
        self._stages = Stages(engine, model, loss, optimizer, self._draws, precision, axis)
        self._schedules = Schedules(engine, self._device, self.forward, loss.module, lambda: accumulator.scale)
        self._signature: int | None = None
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
            self.norms.stay_away()
            raise
        new = bool(window) and signature != self._signature
        exchanged = self._exchange(sum(count for _, count, _ in window), new)
        if exchanged is None:
            return  # somebody has failed, and all learn why at the end
        counts, news = exchanged
        place = self._engine.samples.rank
        self._position = sum(counts[:place]) if position is None else position
        self._weigh, self._window = weigh, window
        if any(news):
            self._prepare(news[place] and bool(window), signature)
        if window:
            with switches(self._precision):
                self._run()

    def _cut(self, window: Window) -> Window:
        """Cut a window that is one piece where nobody said how."""
        if self._micro_batch != "auto" or len(window) != 1:
            return window
        start, samples, piece = window[0]
        size = -(-samples // (PER_STAGE * self._engine.count))
        bounds = [(first, min(first + size, samples)) for first in range(0, samples, size)]
        return [
            (start + first, last - first, tree.cut(piece, first, last, samples, self._axis)) for first, last in bounds
        ]

    def _sign(self, window: Window) -> int:
        """What the stages and their shapes depend on, as a number."""
        if not window:
            return 0
        size = max(count for _, count, _ in window)
        shapes = _shapes(window[0][2], self._axis)
        for _, _, piece in window:
            if _shapes(piece, self._axis) != shapes:
                raise BatchError(
                    "the micro-batches of a window differ in more than their samples, which a pipeline does not take: "
                    f"{_shapes(piece, self._axis)} after {shapes}; pad them to one length"
                )
        modes = [(module.training, getattr(module, "p", None)) for module in self.model.modules()]
        return zlib.crc32(repr((size, shapes, modes)).encode())

    def _exchange(self, count: int, new: bool) -> tuple[list[int], list[bool]] | None:
        """The samples of every part of the batch, and whether its stages have to be made anew; None: one has failed."""
        layout = self._engine.mesh.layout
        said = self._engine.processes.exchange(2 * count + new)
        if _FAILED in said:
            return None
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

    def _prepare(self, new: bool, signature: int) -> None:
        """Cut the model, where it is not, and look at what goes through it; all processes call it.

        Raises:
            InputError: it failed, in this process or another one.
        """
        self._stages.divide(self._window)
        if new:
            self._schedules.clear()
            self._signature = None
        self._together(self._stages.make if new else None)  # before anybody waits for another stage
        self._together(self._stages.look if new else None)
        self._signature = signature if new else self._signature

    def _together(self, work: Callable[[Window], None] | None) -> None:
        error: Exception | None = None
        try:
            if work is not None:
                work(self._window)
        except Exception as caught:
            error = caught
        reasons = self._engine.processes.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, reason in enumerate(reasons):
            if reason is not None:
                raise PeerError(f"process {rank} failed: {reason}")

    def _run(self) -> None:
        number = self._engine.micro_batches(len(self._window))
        schedule = self._schedules.of(number, list(self._stages.own.values()))
        self._error = None
        if self.promise.at_risk and 0 in self._stages.own and (len(self._window) > 1 or self._engine.samples.size > 1):
            self.promise.cut()
        numbers = torch.arange(number)
        first = (numbers,) if 0 in self._stages.own else ()
        target = {"target": numbers} if self._engine.count - 1 in self._stages.own else {}
        if self._draws is None:
            schedule.step(*first, number=numbers, return_outputs=False, **target)
        else:
            self._draws.begin(self.step)
            with self._draws:
                schedule.step(*first, number=numbers, return_outputs=False, **target)
        if self._error is not None:
            raise self._error

    # one micro-batch in one stage ------------------------------------------------------------------------

    def forward(self, stage: Stage, args: Sequence[Tensor], number: int) -> Any:
        """Run a stage on one micro-batch; what it raises is kept, and zeros stand in."""
        try:
            if self._error is None:
                return self._forward(stage, args, number)
        except Exception as error:
            self._error = error
        if stage.last:
            return torch.zeros((), device=self._device, requires_grad=True)
        return tuple(torch.zeros_like(leaf, requires_grad=leaf.is_floating_point()) for leaf in stage.leaving.tensors)

    def _forward(self, stage: Stage, args: Sequence[Tensor], number: int) -> Any:
        void = number >= len(self._window)
        start, samples, piece = self._window[0 if void else number]
        start += void * number * self._stages.size  # a place of its own, so that its draws are told from others
        piece = self._stages.moved(piece)
        if self._draws is not None:
            self._draws.probe = functools.partial(self._stages.probe, stage)
            self._draws.enter(stage.number, stage.before, self._position + start, self._stages.size)
        with autocast(self._precision, self._device):
            result = stage.part(self._values(stage, args, piece, samples))
            if stage.last and not void:
                result = self._loss_of(result, piece, start, samples)
        self._check(stage, number)
        if stage.last:
            return _nothing(result) if void else result
        return self._leaving(stage, result)

    @staticmethod
    def _leaving(stage: Stage, result: Any) -> tuple[Tensor, ...]:
        """What goes to the next stage, which expects certain shapes."""
        leaves = flat(result)
        found = [(tensor.shape, tensor.dtype) for tensor in leaves.tensors]
        expected = [(tensor.shape, tensor.dtype) for tensor in stage.leaving.tensors]
        if found != expected or leaves.rest != stage.leaving.rest:
            raise InputError(
                f"stage {stage.number} gave {[tuple(shape) for shape, _ in found]} for one micro-batch and "
                f"{[tuple(shape) for shape, _ in expected]} for another, of as many samples; in a pipeline shapes must "
                "not depend on values"
            )
        return leaves.tensors

    def _values(self, stage: Stage, args: Sequence[Tensor], piece: Any, samples: int) -> list[Any]:
        """What enters a stage; not as it was received, since a part may work in place, which a leaf does not allow."""
        if stage.number:
            values: list[Any] = rebuilt([received(arg) for arg in args], stage.entering)
            return values
        size = self._stages.size
        call = self._stages.call_of(piece if samples == size else tree.fill(piece, samples, size, self._axis))
        if self._draws is not None and self._draws.calls:
            raise LossError("the loss draws dropout before it calls the model; do so inside the model")
        return stage.values(*call)

    def _loss_of(self, output: Any, piece: Any, start: int, samples: int) -> Tensor:
        """The sum of a micro-batch's losses, which it counts."""
        if samples < self._stages.size:
            output = self._without_rest(output, samples)
        stub = _Answers(output)
        result = self._loss.forward(stub, piece)
        if stub.calls != 1:
            raise LossError(f"the loss calls the model {stub.calls} times; in a pipeline it runs once, so call it once")
        loss_sum, weight = self._loss.summed(result, piece, start, samples, self._weigh)
        if self.watch is not None and self._loss.shows_output:
            self.watch(tree.map_tensors(Tensor.detach, result), *targets_of(piece))
        self._accumulator.count(loss_sum.detach(), weight, samples)
        return loss_sum if loss_sum.requires_grad else loss_sum + _nothing(output)

    def _without_rest(self, output: Any, samples: int) -> Any:
        if not self._stages.cuttable:
            raise BatchError(
                f"a micro-batch of {samples} samples is to be filled up to {self._stages.size}, but samples are not "
                "axis 0 of every output of the model; choose a micro_batch that divides the batch"
            )
        return tree.cut(output, 0, samples, self._stages.size)

    def _check(self, stage: Stage, number: int) -> None:
        """See that the masks were those of one process, and say what was drawn beside them."""
        if self._draws is None:
            return
        if self._draws.calls != stage.calls and not stage.last:  # nothing comes after the last one
            raise InputError(
                f"stage {stage.number} made {self._draws.calls} calls of dropout for one micro-batch and {stage.calls} "
                "for another, so the masks of later stages are not known; let every micro-batch make the same calls"
            )
        if number == 0 and not self.promise.knows_of_draws() and self._draws.moved():
            self.promise.drawn([f"{type(module).__name__} of stage {stage.number}" for module in stage.part.modules()])


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

    def __init__(self, stay_away: Callable[[], object]) -> None:
        self.stay_away = stay_away

    def refuse_cut(self, size: int, samples: int) -> None: ...

    def whole(self) -> None: ...

    def forget(self) -> None: ...

    def apply(self) -> None: ...


def _refuse(model: nn.Module, loss: LossCall, precision: str) -> None:
    """Refuse what no pipeline here does exactly."""
    later = "is not available with a pipeline in this version"
    if precision in ("fp16", "bf16-true"):
        raise ConfigError(f"precision={precision!r} {later}; use 'fp32', 'tf32' or 'bf16'")
    if loss.coupled:
        raise ConfigError(f"a WholeBatchLoss {later}; use data parallel alone")
    for name, layer in model.named_modules():
        if isinstance(layer, GroupedNorm):
            raise ConfigError(f"the grouped batch norm {name!r} {later}; use layer norm or group norm")
    if PowerIterations(model).vectors:
        raise ConfigError(f"spectral norm {later}")


def _nothing(output: Any) -> Tensor:
    """A zero that hangs on ``output``, whose gradient is zero whatever its values are."""
    found: list[Tensor] = []
    tree.map_tensors(found.append, output)
    for tensor in found:
        if tensor.requires_grad:
            return tensor.reshape(-1)[:0].sum()
    return torch.zeros((), device=found[0].device if found else "cpu", requires_grad=True)


def _shapes(piece: Any, axis: tree.Axis) -> list[tuple[str, str, tuple[int, ...]]]:
    """Names, types and shapes of what is cut along its samples, but for their number."""
    arrays = tree.arrays(piece, axis)
    return [(name, str(of.dtype), (*of.shape[:where], -1, *of.shape[where + 1 :])) for name, of, where in arrays]
