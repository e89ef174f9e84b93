"""The stages of a pipeline that one process has: where the model is cut, and what is known of what goes through.

The model is cut once, when the first window shows a micro-batch. What crosses between the stages, and how many keyed
calls each of them makes, is found by sending a micro-batch through them without gradients; that is done anew where
shapes or modes have changed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.core.device import device_of
from wholebatch.core.errors import InputError, LossError, PeerError
from wholebatch.parallel.balance import measured_cuts
from wholebatch.parallel.leaves import Leaves, flat, rebuilt
from wholebatch.parallel.traced import Part, Traced
from wholebatch.step.losses import LossCall
from wholebatch.step.precision import autocast
from wholebatch.step.stage_draws import StageDraws
from wholebatch.step.unkeyed import unchanged_buffers

if TYPE_CHECKING:
    from wholebatch.parallel.pipeline import PipelineEngine

Window = list[tuple[int, int, Any]]  # start, samples, piece


class Stage:
    """One stage of this process, and what was found out about it."""

    def __init__(
        self, number: int, part: Part, last: bool, values: Callable[[Sequence[Any], Mapping[str, Any]], list[Any]]
    ) -> None:
        self.number, self.part, self.last, self.values = number, part, last, values
        self.before = self.calls = 0  # keyed calls of the stages before it, and of its own
        self.entering = self.leaving = Leaves()
        self.looks: dict[tuple[int, int], list[Any]] = {}  # by first and stop: what entered with these samples


class _Said(NamedTuple):
    """What one stage tells the next while it is looked at what goes through."""

    leaves: Leaves | None
    before: int  # keyed calls so far
    failed: str | None


class Stages:
    """This process's stages of a model.

    Attributes:
        own: they, by number.
        size: samples of a micro-batch, filled up.
        cuttable: whether samples are axis 0 of all that the model gives; known where the last stage is.
    """

    def __init__(
        self,
        engine: PipelineEngine,
        model: nn.Module,
        loss: LossCall,
        optimizer: Optimizer,
        draws: StageDraws | None,
        precision: str,
        axis: tree.Axis,
    ) -> None:
        self._engine, self._model, self._loss, self._optimizer = engine, model, loss, optimizer
        self._draws, self._precision, self._axis = draws, precision, axis
        self._device = device_of(model)
        self._divided = False
        self._error: Exception | None = None
        self.own: dict[int, Stage] = {}
        self.size = 0
        self.cuttable = True

    # cutting the model ------------------------------------------------------------------------------------

    def divide(self, window: Window) -> None:
        """Agree on where to cut, by the first process that has samples, and keep this process's part; once.

        Raises:
            InputError: the model cannot be cut; PeerError where another process has found that.
        """
        if self._divided:
            return
        engine = self._engine
        first = next(rank for rank, number in enumerate(engine.processes.exchange(len(window))) if number)
        owners, error = None, None
        if first == engine.processes.rank:
            try:
                traced, values = self._traced(window)
                engine.cuts = engine.cuts or measured_cuts(traced, values, engine.count)
                owners = self._owners(self._parts(traced))
            except Exception as caught:
                error = caught
        said = engine.processes.gather((engine.cuts, owners, error and f"{type(error).__name__}: {error}"))
        engine.cuts, owners, reason = said[first]
        if error is not None:
            raise error
        if reason is not None:
            raise PeerError(f"process {first} failed: {reason}")
        assert owners is not None
        engine.divide(self._modules(), owners, self._optimizer)
        self._divided = True

    def make(self, window: Window) -> None:
        """Make the stages for micro-batches like those of ``window``; local."""
        traced, _ = self._traced(window)
        parts = self._parts(traced)
        own = self._engine.own
        self.own = {number: Stage(number, parts[number], number == len(parts) - 1, traced.values) for number in own}
        self.size = max(count for _, count, _ in window)

    def _traced(self, window: Window) -> tuple[Traced, list[Any]]:
        _, _, piece = max(window, key=lambda one: one[1])
        args, kwargs = self.call_of(self.moved(piece))
        traced = Traced(self._model, args, kwargs, self._engine.cuts or ())
        return traced, traced.values(args, kwargs)

    def _modules(self) -> list[nn.Module]:
        return [self._model] if self._loss.module is None else [self._model, self._loss.module]

    def _parts(self, traced: Traced) -> list[Part]:
        cuts = self._engine.cuts
        assert cuts is not None
        places = [0, *(traced.place_of(cut) for cut in cuts), len(traced.steps)]
        if sorted(set(places)) != places:
            raise InputError(f"cuts: {cuts} are not in the order in which the model runs, or leave a stage empty")
        return [traced.part(start, stop) for start, stop in itertools.pairwise(places)]

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

    # what goes through ------------------------------------------------------------------------------------

    def moved(self, piece: Any) -> Any:
        """Return a micro-batch on the model's device."""
        return piece if self._device.type == "cpu" else tree.to_device(piece, self._device)

    def call_of(self, piece: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what the loss calls the model with.

        Raises:
            LossError: it does not call it.
        """
        try:
            self._loss.forward(_Asks(), piece)
        except _Asked as asked:
            return asked.call
        raise LossError("the loss does not call the model")

    def look(self, window: Window) -> None:
        """Send a micro-batch through the stages, for the shapes between them and the keyed calls in each.

        Then another one with fewer samples, and one without the first, which tell where in a tensor the samples are.
        All processes of the pipeline call it; those raise that learn of an error.
        """
        samples = self.size
        moved = self.moved(next(piece for _, count, piece in window if count == samples))
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
        self.cuttable = lengths[:2] == [[samples] * len(lengths[0]), [other] * len(lengths[0])]
        for stage in self.own.values():
            if not stage.calls:
                stage.looks.clear()

    def _look_at(self, bounds: tuple[int, int], piece: Any, whole: bool) -> list[int]:
        """Send ``piece`` through; return the lengths of what the last stage gives, where this process has it.

        A stage that fails says so to the next one, which goes on to receive: nobody waits for what does not come.
        """
        lengths: list[int] = []
        engine, said = self._engine, _Said(None, 0, None)
        for number, stage in sorted(self.own.items()):
            if number and engine.process_of(number - 1) != engine.pipe.rank:
                said = self._receive(engine.process_of(number - 1))
            failed = said.failed or (None if self._error is None else str(self._error))
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

    def _entering(self, stage: Stage, piece: Any, leaves: Leaves | None) -> list[Any]:
        if stage.number == 0:
            return stage.values(*self.call_of(piece))
        assert leaves is not None
        values: list[Any] = rebuilt([tensor.to(self._device) for tensor in leaves.tensors], leaves)
        return values

    def _looked(self, stage: Stage, values: list[Any], before: int) -> tuple[Any, int]:
        """What a stage gives without drawing, and its keyed calls."""
        if self._draws is None:
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                return self._unkept(stage, values), 0
        with self._draws:
            return self._draws.look(before, lambda: self._unkept(stage, values))

    def probe(self, stage: Stage, first: int, stop: int) -> None:
        """Run a stage on the samples ``first … stop`` of a micro-batch for what its keyed calls see."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reentrant checkpointing says that nothing needs gradients here
            self._unkept(stage, stage.looks[first, stop])

    def _unkept(self, stage: Stage, values: list[Any]) -> Any:
        """What a stage gives, with nothing changed and nothing to be kept for backward."""
        modules = nn.ModuleList(stage.part.modules())
        try:
            with torch.no_grad(), autocast(self._precision, self._device), unchanged_buffers(modules):
                return stage.part(tree.map_tensors(torch.clone, values))
        finally:
            torch.clear_autocast_cache()  # casts of weights made here know no gradients

    def _send(self, said: _Said, to: int) -> None:
        leaves = None if said.leaves is None else said.leaves.on_cpu()
        what = [_Said(leaves, said.before, said.failed)]
        distributed.send_object_list(what, group=self._engine.pipe.group, group_dst=to)

    def _receive(self, source: int) -> _Said:
        found: list[Any] = [None]
        distributed.recv_object_list(found, group=self._engine.pipe.group, group_src=source)
        said: _Said = found[0]
        return said


class _Asked(Exception):
    """The model would be called now."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = args, kwargs


class _Asks(nn.Module):
    """Stands for the model on the first stage: what is it called with?"""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _Asked(args, kwargs)


def _lengths(output: Any) -> list[int]:
    found: list[Tensor] = []
    tree.map_tensors(found.append, output)
    return [len(tensor) if tensor.ndim else 0 for tensor in found]
