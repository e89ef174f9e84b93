"""Randomness inside a step: keyed, noticed where it is not, and given back to the caller as it was found.

While a step runs, the dropout functions of ``torch.nn.functional`` are keyed ones, and the default
generators are seeded from (seed, step, position) at every micro-batch's beginning. A keyed call draws one
number from the generator and notes which call of the micro-batch that was: activation checkpointing
restores the generator before it recomputes, draws the same number, and so finds the same call, hence the same
mask. Whatever else moved the generator is a draw that no key covers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wholebatch.core import keys
from wholebatch.core.errors import BatchError
from wholebatch.step.dropout import keyed_functions
from wholebatch.step.parts import is_part, own_mask, some_heads, whole_shape
from wholebatch.step.row_numbers import row_numbers

OFF = "dropout_is_off"  # an attribute of a function in the place of a dropout that is to stay off in a step as well
NAMES = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "scaled_dot_product_attention",
)

Shape = tuple[int, ...]
Place = tuple[int, int]  # the samples' axis, and how often it runs through them (2: two views, concatenated)
State = tuple[Tensor, Tensor | None] | None  # of the CPU's generator, and of the accelerator's


class Draws:
    """The draws of one model under one seed. Used as a context manager around a step's micro-batches.

    ``probe(first, stop)`` runs the model without gradients on these samples of the micro-batch (on two, where it has
    one). What each keyed call then sees tells where its samples are; it is asked only where that is not plain.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.probe: Callable[[int, int], None] | None = None
        self._cpu = torch.default_generator
        self._device = _device_generator(device)
        self._reference = torch.Generator()
        self._word = torch.empty((), dtype=torch.int64)
        self._places: dict[tuple[int, int, Shape], Place | None] = {}  # by call, samples and shape
        self._seen: dict[tuple[int, int], tuple[Place, Shape]] = {}  # by call and number of axes
        self._recording: list[Shape] | None = None
        self._watched: tuple[int, int] | None = None  # the call and axis whose rows a recording keeps
        self._rows: tuple[Tensor, float] | None = None
        self._probed_shapes: list[Shape] | None = None
        self._calls: dict[int, int] = {}
        self._before = 0  # keyed calls of the stages of a pipeline that come before this one
        self._micro_batch_key = 0
        self.asks = True  # whether a probe may be made
        self.unplaced = False  # whether the position in the whole batch is not known
        self._step = self._position = self._samples = 0
        self._seeding = True
        self._saved: State = None  # the caller's
        self._begun: State = None  # at the beginning of this micro-batch
        self._originals: dict[str, Any] = {}
        self._keyed = keyed_functions(self, self._originals)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles begin anew; what is kept between steps are findings, not state."""
        return _anew, (self.seed, None if self._device is None else str(self._device.device))

    def __enter__(self) -> Draws:
        self._replace()
        self.remember()
        return self

    def __exit__(self, *error: object) -> None:
        functions = vars(F)
        for name, original in self._originals.items():
            functions[name] = original
        self.give_back()

    def _replace(self) -> None:
        functions = vars(F)
        for name in NAMES:
            self._originals[name] = functions[name]
        for name, keyed in self._keyed.items():
            if getattr(functions[name], OFF, False):
                continue
            functions[name] = keyed  # one by one: update() may rebuild the module's dict, which slows every look-up

    def remember(self) -> None:
        """Keep the caller's generators as they are now."""
        self._saved = self._state()

    def give_back(self) -> None:
        """Put the caller's generators back."""
        self._set_state(self._saved)

    def pause(self) -> State:
        """Give the generators and functions back for a while; ``resume`` takes what this returns."""
        running = self._state()
        functions = vars(F)
        for name, original in self._originals.items():
            functions[name] = original
        self.give_back()
        return running

    def resume(self, running: State) -> None:
        """Keep what the caller did to the generators, and go on where ``pause`` stopped."""
        self._replace()
        self.remember()
        if self._seeding:
            self._set_state(running)

    def _state(self) -> State:
        return self._cpu.get_state(), None if self._device is None else self._device.get_state()

    def _set_state(self, state: State) -> None:
        assert state is not None
        self._cpu.set_state(state[0])
        if self._device is not None and state[1] is not None:
            self._device.set_state(state[1])

    def micro_batch(self, step: int, position: int, samples: int, twice: bool = False) -> None:
        """A micro-batch begins: ``samples`` samples from ``position`` in the whole batch on.

        One that is run ``twice`` is seeded in any case, so that it draws the same again.
        """
        self._step, self._position, self._samples = step, position, samples
        self._probed_shapes = None
        if self._calls or twice:
            self._calls.clear()
            self._seeding = True
        if not self._seeding:
            self._begun = self._saved
            return
        self._micro_batch_key = keys.key(self.seed, "generator", step, position)
        self._cpu.manual_seed(self._micro_batch_key)
        if self._device is not None:
            self._device.manual_seed(self._micro_batch_key)

    def unkeyed(self) -> bool:
        """Whether something drew, in this micro-batch, that no key covers.

        After a step that drew nothing the generators are not seeded any more, until something draws again;
        keyed masks do not depend on it.
        """
        moved = self.moved()
        self._seeding = moved or bool(self._calls)
        return moved

    def moved(self) -> bool:
        """Whether the generators moved more, in this micro-batch, than the keyed calls account for."""
        if self._seeding:
            if self._device is not None and self._device.get_offset() != 0:
                return True
            self._reference.manual_seed(self._micro_batch_key)
        else:
            if not self._calls or self._begun is None:
                return not self._as_found()
            self._reference.set_state(self._begun[0])
        if self._calls:
            torch.empty(len(self._calls), dtype=torch.int64).random_(generator=self._reference)
        before = self._cpu.get_state()
        found = self._word.random_().item()
        self._cpu.set_state(before)
        return found != self._word.random_(generator=self._reference).item()

    def _as_found(self) -> bool:
        """Whether the generators are as at the micro-batch's beginning; as bytes, since tensors compare slowly."""
        begun, now = self._begun, self._state()
        assert begun is not None
        assert now is not None
        if now[1] is not None and begun[1] is not None and now[1].numpy().tobytes() != begun[1].numpy().tobytes():
            return False
        return now[0].numpy().tobytes() == begun[0].numpy().tobytes()

    def drop(self, x: Tensor, lead: Shape, p: float, heads: bool = False) -> Tensor:
        """Return the boolean mask of one keyed call on ``x``, True with probability ``p``, shape ``lead``.

        Of what several processes compute together it is this process's part of the whole mask.
        """
        together = is_part(x) or (heads and some_heads())
        whole = self._drop(x, whole_shape(lead) if together and not is_part(x) else lead, p)
        return own_mask(whole, x) if together else whole

    def _drop(self, x: Tensor, lead: Shape, p: float) -> Tensor:
        device = x.device
        if self._recording is not None:
            return self._record_call(x, lead)
        if self.unplaced:
            raise BatchError(
                "dropout on several processes needs the samples' places in the whole batch, which this window does not "
                "tell; say how many samples it holds: MicroBatches(iterator, samples=n), or step(window, position=p)"
            )
        call = self._call()
        place = self._place(call, lead, x.is_leaf and x.requires_grad)
        count = 1
        for length in lead:
            count *= length
        start = 0 if place is None else self._position * (count // self._samples)
        bits = keys.random_bits(keys.key(self.seed, "dropout", self._step, call), start, count, device)
        dropped = (
            torch.lt(bits, min(round(p * 2**32), 2**32 - 1) - 2**31)
            if p < 1
            else torch.ones_like(bits, dtype=torch.bool)
        )
        if place is None or place == (0, 1):
            return dropped.view(lead)
        axis, times = place
        rest = _without(lead, axis)
        runs = dropped.view(self._samples, times, lead[axis] // self._samples // times, *rest).transpose(0, 1)
        return runs.reshape(lead[axis], *rest).movedim(0, axis)

    def _call(self) -> int:
        """Which keyed call of the micro-batch this is, the same one when it is recomputed."""
        number = self._word.random_().item()
        return self._calls.setdefault(int(number), len(self._calls))

    def _place(self, call: int, lead: Shape, of_weight: bool) -> Place | None:
        """Where the samples are in a call's tensor; None where it has none (a dropped weight, say).

        Axis 0 where it is exactly as long as there are samples and no other axis is. Anything else (flattened
        tokens, sequences first, a weight, a single sample, which any length is a multiple of) is decided by a probe,
        once per shape, or once where later shapes differ in that axis alone.
        """
        samples = self._samples
        if not of_weight and samples > 1 and lead.count(samples) == 1:
            axis = lead.index(samples)
            if axis == 0 or self._seen.get((call, len(lead)), (None,))[0] == (axis, 1):
                if not self.asks:
                    self._seen[call, len(lead)] = (axis, 1), _without(lead, axis)  # for a last piece of one sample
                return axis, 1
        found = (call, samples, lead)
        if found not in self._places:
            (axis, times), rest = self._seen.get((call, len(lead)), ((0, 1), None))
            if rest == _without(lead, axis) and lead[axis] % (samples * times) == 0 and not of_weight:
                return axis, times
            self._places[found] = self._probed(call, lead)
        return self._places[found]

    def _probed(self, call: int, lead: Shape) -> Place | None:
        """The axis whose length follows the number of samples, and how it runs through them."""
        samples = self._samples
        other = samples - 1 if samples > 1 else 2
        if self._probed_shapes is None:
            self._probed_shapes = self.record(0, other)
        shapes = self._probed_shapes
        if call >= len(shapes) or len(shapes[call]) != len(lead):
            return None
        for axis, (length, probed) in enumerate(zip(lead, shapes[call], strict=True)):
            if length != probed and length * other == probed * samples:
                place = axis, self._times(call, axis, length // samples) if length > samples > 1 else 1
                if samples > 1:
                    self._seen[call, len(lead)] = place, _without(lead, axis)
                return place
        return None

    def _times(self, call: int, axis: int, ratio: int) -> int:
        """How many times an axis of ``ratio`` entries per sample runs through all samples.

        Once, if each sample's entries are neighbours (flattened tokens); ``ratio`` times, if the samples are
        (flattened with the sequence first, views concatenated). Leaving out the first sample takes away its entries.
        Where all are alike (uniform attention), both fit up to rounding, which must not decide: then it is once.
        """
        samples = self._samples
        found, without = self._rows_of(call, axis, 0), self._rows_of(call, axis, 1)
        if found is None or without is None:
            return 1
        (rows, off), (fewer, _) = found, without
        if len(rows) != ratio * samples or len(fewer) != ratio * (samples - 1):
            return 1

        def mismatch(times: int) -> float:
            kept = rows.view(times, samples, -1)[:, 1:]
            return float((kept - fewer.view(times, samples - 1, -1)).abs().sum())

        if mismatch(1) <= off:
            return 1
        return min((times for times in range(1, ratio + 1) if ratio % times == 0), key=mismatch)

    def _rows_of(self, call: int, axis: int, first: int) -> tuple[Tensor, float] | None:
        """One number for each entry along ``axis`` of a call's tensor, without the samples before ``first``."""
        self._watched, self._rows = (call, axis), None
        try:
            self.record(first, self._samples)
        finally:
            self._watched = None
        return self._rows

    def _record_call(self, x: Tensor, lead: Shape) -> Tensor:
        assert self._recording is not None
        if self._watched is not None and self._watched[0] == len(self._recording):
            x = x.full_tensor() if is_part(x) else x  # type: ignore[attr-defined]
            self._rows = row_numbers(x, self._watched[1])
        self._recording.append(lead)
        return torch.zeros(lead, dtype=torch.bool, device=x.device)

    @contextmanager
    def nothing(self) -> Iterator[None]:
        """Within the block keyed calls drop nothing and note nothing, and the generators stay as they are."""
        state, self._recording = self._state(), []
        try:
            yield
        finally:
            self._recording = None
            self._set_state(state)

    def record(self, first: int, stop: int) -> list[Shape]:
        """Return the shapes of all keyed calls of a forward with the samples ``first … stop`` of this micro-batch."""
        assert self.probe is not None
        state = self._state()
        shapes: list[Shape] = [()] * self._before
        self._recording = shapes
        try:
            self.probe(first, stop)
        finally:
            self._recording = None
            self._set_state(state)
        return shapes


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def _anew(seed: int, device: str | None) -> Draws:
    return Draws(seed, torch.device(device or "cpu"))


def _device_generator(device: torch.device) -> torch.Generator | None:
    """The default generator of an accelerator; None on the CPU."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
