"""The micro-batches of a step through model and loss: their draws, their device, their precision, what they break."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from wholebatch.core import keys, tree
from wholebatch.core.device import device_of
from wholebatch.core.errors import BatchError
from wholebatch.core.processes import Processes
from wholebatch.step.bitwise import Bitwise
from wholebatch.step.coupled import Replayed, TwoPasses, WholeBatchLoss
from wholebatch.step.draws import Draws
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.group_place import Place
from wholebatch.step.losses import LossCall, targets_of
from wholebatch.step.precision import autocast, switches
from wholebatch.step.promise import Promise
from wholebatch.step.seeded import Seeded
from wholebatch.step.unkeyed import PowerIterations, layers_that_draw, unchanged_buffers

Pieces = Iterator[tuple[int, int, Any, bool]]


class Passes:
    """Runs forward and backward of every micro-batch of a window.

    ``step`` numbers the window, for its draws; ``watch`` is called with (output, *targets) of every micro-batch.
    """

    places = False  # whether it finds out by itself where the samples are in the whole batch

    def __init__(
        self,
        model: nn.Module,
        loss: LossCall,
        accumulator: GradientAccumulator,
        processes: Processes,
        *,
        seed: int,
        keyed: bool,
        precision: str,
        axis: tree.Axis,
        overlaps: bool = False,
        bitwise: Bitwise | None = None,
    ) -> None:
        self.model = model
        self.seed = seed
        self.precision = precision
        self.step = 0
        self.watch: Callable[..., None] | None = None
        self.watched = 0  # samples of the window that ``watch`` was told already, when it is made again
        self.running: tuple[Any, int] | None = None  # the micro-batch that is under way, and its samples
        self._loss = loss
        self._accumulator = accumulator
        self._processes = processes
        self._axis = axis
        self._device = device_of(model)
        self.draws = Draws(seed, self._device) if keyed else None
        self._bitwise = bitwise
        if bitwise is not None:
            self.draws = Seeded(seed, self._device)
        elif self.draws is not None:
            self.draws.asks = not accumulator.stands_in
        self._power = PowerIterations(model)
        self.promise = Promise(model, says=processes.rank == 0)
        self.norms = Place(model, processes, overlaps)
        self._position: int | None = None
        # Without what surrounds it, and does nothing then, a step of a tiny model is some percent faster.
        plain = precision == "fp32" and self._device.type == "cpu" and bitwise is None
        self._simple = plain and not (self.norms.any or self.promise.at_risk or self._power.vectors)

    def run(self, pieces: Pieces, position: int | None, weigh: bool, samples: int | None = None) -> None:
        """Run all micro-batches of a window: (start, samples, piece, whether it is the last) each.

        Args:
            pieces: of this process.
            position: the first sample's place in the whole batch; None where it is not known.
            weigh: whether the weight is counted here; it is known otherwise.
            samples: how many there are; None where that is not known.
        """
        self._position = position
        if self._simple:
            self._run_all(pieces, position, weigh)
            return
        own_norms = contextlib.nullcontext() if self._bitwise is None else self._bitwise.norms
        with own_norms, self.norms, switches(self.precision):
            self.norms.check_parts(samples)
            self._run_all(pieces, position, weigh)

    def _run_all(self, pieces: Pieces, position: int | None, weigh: bool) -> None:
        if self._loss.coupled:
            self._run_coupled(pieces, position)
            return
        if self.draws is None:
            for start, samples, piece, last in pieces:
                if samples:
                    self._run(piece, start, samples, weigh, last)
                else:
                    self._stand_in(piece)
            return
        self.draws.unplaced = position is None
        with self.draws:
            self._run_keyed(pieces, position or 0, weigh)

    def _run_keyed(self, pieces: Pieces, position: int, weigh: bool) -> None:
        draws = self.draws
        assert draws is not None
        samples = start = 0
        piece: Any = None
        draws.probe = self._probe_running
        for first, count, cut, last in pieces:
            if not count:
                self._stand_in(cut)
                continue
            start, samples, piece = first, count, cut
            draws.micro_batch(self.step, position + start, samples)
            self._run(piece, start, samples, weigh, last)
        draws.probe = None
        if samples and draws.unkeyed() and not self.promise.knows_of_draws():  # the last micro-batch stands for all
            self._tell_draws(piece, position + start, samples)

    def _run(self, piece: Any, start: int, samples: int, weigh: bool, last: bool) -> None:
        self.running = piece, samples
        if self._simple:
            output = self._loss.forward(self.model, piece)
            loss_sum, weight = self._loss.summed(output, piece, start, samples, weigh)
        else:
            piece = self._begin(piece, start, samples)
            with self._autocast(), self._forward(samples):
                output = self._loss.forward(self.model, piece)
                loss_sum, weight = self._loss.summed(output, piece, start, samples, weigh)
        if self._bitwise is not None:
            self._bitwise.check_buffers()
        if self._accumulator.stands_in and not loss_sum.requires_grad:
            self._add_nothing(output, loss_sum)
        if self.watch is not None:
            self._show(output, piece, start, samples)
        self._accumulator.add_sum(loss_sum, weight, samples, last)

    def _forward(self, samples: int) -> contextlib.AbstractContextManager[Any]:
        """What surrounds a forward that counts."""
        return self.norms.forward() if self._bitwise is None else self._bitwise.norms.micro_batch(samples)

    def _show(self, output: Any, piece: Any, start: int, samples: int) -> None:
        """Let metrics look at a micro-batch, once however often the window is made."""
        if self._loss.shows_output and start >= self.watched:
            assert self.watch is not None
            shown = tree.map_tensors(Tensor.detach, self._loss.shown(output))
            self.watch(shown, *targets_of(piece))
            self.watched = start + samples

    def _stand_in(self, example: Any) -> None:
        """Make a pass that counts nothing, because other processes wait for it."""
        example = tree.to_device(example, self._device)
        with unchanged_buffers(self.model), self._undrawn():
            with self._autocast(), self.norms.only_looking():
                output = self._loss.forward(self.model, example)
                loss_sum, _ = self._loss.summed(output, example, 0, 1, True)
            self._add_nothing(output, loss_sum)

    def _add_nothing(self, output: Any, loss_sum: Tensor) -> None:
        """Run backward for nothing; one whose weight is 0 has no gradient, yet the others wait."""
        found = [loss_sum]
        tree.map_tensors(lambda tensor: found.append(tensor.sum()) or tensor, output)  # type: ignore[func-returns-value]
        self._accumulator.add_nothing(next((one for one in found if one.requires_grad), loss_sum))

    def _undrawn(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.draws is None else self.draws.nothing()

    def _begin(self, piece: Any, start: int, samples: int) -> Any:
        """The micro-batch on the model's device, and what has to be done before it runs."""
        self.norms.micro_batch(self._position, start, samples)
        self.norms.probe = functools.partial(self._probe_norms, piece, samples)
        if self._bitwise is not None:
            fresh = tree.map_tensors(_fresh, piece)  # the alignment of a part of a tensor chooses the kernel
            return fresh if self._device.type == "cpu" else tree.to_device(fresh, self._device)
        if self.promise.at_risk and (start or self._processes.size > 1):
            self.promise.cut()
        if self._power.vectors:
            self._power.micro_batch(first=start == 0)
        return piece if self._device.type == "cpu" else tree.to_device(piece, self._device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.precision, self._device)

    def _probe_running(self, first: int, stop: int) -> None:
        assert self.running is not None
        self._probe(*self.running, first, stop)

    def _probe(self, piece: Any, samples: int, first: int, stop: int) -> None:
        """Run the model on the samples ``first … stop`` for what its keyed calls see; on two where there is one."""
        if self._accumulator.stands_in:
            raise BatchError(
                "which axis of a dropped tensor is the samples' is not plain here (one sample, flattened tokens, or "
                "two axes of one length), and asking the model would make the other processes wait for ever; use "
                "reshard='step', or another micro_batch"
            )
        less = stop <= samples
        other = tree.cut(piece, first, stop, samples, self._axis) if less else tree.double(piece, self._axis)
        if self._device.type != "cpu":
            other = tree.to_device(other, self._device)
        try:
            with (
                torch.no_grad(),
                self._autocast(),
                self.norms.only_looking(),
                unchanged_buffers(self.model),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # reentrant checkpointing says that nothing needs gradients here
                self._loss.forward(self.model, other)
        finally:
            torch.clear_autocast_cache()  # casts of weights made here know no gradients

    def _probe_norms(self, piece: Any, samples: int, first: int, stop: int) -> None:
        """Run the model for what its grouped batch norms see, with nothing drawn that counts."""
        if self.draws is not None:
            self.draws.record(first, stop)
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._probe(piece, samples, first, stop)

    def rehearse(self, piece: Any, samples: int, adds: bool = False) -> None:
        """Run forward and backward of a micro-batch that belongs to no window; nothing of it stays.

        Args:
            piece: the micro-batch.
            samples: of it.
            adds: whether its gradient is one of several, which are added up.
        """
        with self._without_trace(samples, piece):
            total = self._total(piece, samples)
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            dense = [gradient for gradient in found if gradient is not None and not gradient.is_sparse]
            if adds and dense:
                torch._foreach_add_(dense, dense)  # takes what adding them to those of others does, and no memory

    def kept_bytes(self, piece: Any, samples: int) -> int:
        """The bytes that autograd keeps of a forward with this micro-batch, parameters apart; nothing of it stays."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        found: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with self._without_trace(samples, piece), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self._total(piece, samples)
        return sum(found.values())

    def _total(self, piece: Any, samples: int) -> Tensor:
        piece = piece if self._device.type == "cpu" else tree.to_device(piece, self._device)
        with self._autocast():
            return self._loss.summed(self._loss.forward(self.model, piece), piece, 0, samples, False)[0]

    @contextlib.contextmanager
    def _without_trace(self, samples: int, piece: Any) -> Iterator[None]:
        """Draws as in a window, given back with the buffers."""
        draws = self.draws
        devices = [self._device] if self._device.type == "cuda" else []
        kept = contextlib.ExitStack()
        for context in (torch.random.fork_rng(devices), unchanged_buffers(self.model), switches(self.precision)):
            kept.enter_context(context)
        with kept, torch.enable_grad():
            if draws is None:
                yield
                return
            unplaced, draws.unplaced = draws.unplaced, False
            try:
                with draws:
                    draws.micro_batch(self.step, 0, samples, twice=True)
                    draws.probe = functools.partial(self._probe, piece, samples)
                    yield
            finally:
                draws.probe, draws.unplaced = None, unplaced

    def _tell_draws(self, piece: Any, position: int, samples: int) -> None:
        draws = self.draws
        assert draws is not None

        def forward() -> None:
            moved = tree.to_device(piece, self._device)
            with self._autocast(), self.norms.only_looking():
                self._loss.summed(self._loss.forward(self.model, moved), moved, position, samples, False)

        def mark() -> None:
            draws.micro_batch(self.step, position, samples)

        if self._accumulator.stands_in:  # the others would wait for the forwards that tell which
            self.promise.drawn(["a layer that is not told"])
            return
        names = layers_that_draw(self.model, forward, draws, mark) or ["the backward pass"]
        self.promise.drawn(names)

    # a loss of the whole batch ------------------------------------------------------------------------

    def _run_coupled(self, pieces: Pieces, position: int | None) -> None:
        draws, again = self.draws, Replayed(self._device)
        if draws is not None:
            draws.unplaced = position is None
        with contextlib.nullcontext() if draws is None else draws:
            window = list(pieces)
            encoded: set[int] = set()

            def encode(number: int) -> tuple[Tensor, ...]:
                start, samples, piece, _ = window[number]
                self.running = piece, samples
                if draws is None:
                    again.micro_batch(number)
                else:
                    draws.micro_batch(self.step, (position or 0) + start, samples, twice=True)
                    draws.probe = functools.partial(self._probe, piece, samples)
                piece = self._begin(piece, start, samples)
                counts = number not in encoded
                encoded.add(number)
                with self._autocast(), self.norms.forward(counts):
                    found = self._coupled.forward(self.model, piece)
                if self.watch is not None:
                    self._show(found, piece, start, samples)
                return found

            passes = TwoPasses([samples for _, samples, *_ in window], encode, self._of_whole)
            passes.run(self.model, self._processes, self._accumulator)
            if draws is not None:
                draws.probe = None
                if window and draws.unkeyed() and not self.promise.knows_of_draws():
                    start, samples, piece, _ = window[-1]
                    self._tell_draws(piece, (position or 0) + start, samples)

    def _of_whole(self, representations: tuple[Tensor, ...], samples: int) -> Tensor:
        """The loss, with draws of its own, alike on every process."""

        def probe(first: int, stop: int) -> None:
            less = stop <= samples
            other = tree.cut(representations, first, stop, samples) if less else tree.double(representations)
            with torch.no_grad(), self._autocast():
                self._coupled.of_whole(other)

        with Draws(keys.key(self.seed, "coupled"), self._device) as draws, self._autocast():
            draws.micro_batch(self.step, 0, samples, twice=True)
            draws.probe = probe
            return self._coupled.of_whole(representations)

    @property
    def _coupled(self) -> WholeBatchLoss:
        return cast(WholeBatchLoss, self._loss)


def _fresh(tensor: Tensor) -> Tensor:
    """A copy in memory of its own, laid out alike wherever it was cut from."""
    if not tensor.is_contiguous() and tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.clone(memory_format=torch.channels_last)
    return tensor.clone(memory_format=torch.contiguous_format)
