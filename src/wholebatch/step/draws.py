"""Randomness inside a step: keyed, noticed where it is not, and given back to the caller as it was found.

While a step runs, the dropout functions of ``torch.nn.functional`` are keyed ones, and the default
generators are seeded from (seed, step, position) at every micro-batch's beginning. A keyed call draws one
number from the generator and notes which call of the micro-batch that was: activation checkpointing
restores the generator before it recomputes, draws the same number, and so finds the same call, hence the same
mask. Whatever else moved the generator is a draw that no key covers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wholebatch.core import keys
from wholebatch.core.errors import BatchError
from wholebatch.step.dropout import keyed_functions

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
State = tuple[Tensor, Tensor | None] | None  # of the CPU's generator, and of the accelerator's


class Draws:
    """The draws of one model under one seed. Used as a context manager around a step's micro-batches.

    ``probe(samples)`` runs the model without gradients on a micro-batch of ``samples`` samples, whose shapes tell
    which axis of each keyed call is the samples'; it is asked only where that is not plain, once per call.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.probe: Callable[[int], None] | None = None
        self._cpu = torch.default_generator
        self._device = _device_generator(device)
        self._reference = torch.Generator()
        self._word = torch.empty((), dtype=torch.int64)
        self._axes: dict[int, int | None] = {}
        self._recording: list[Shape] | None = None
        self._probed_shapes: list[Shape] | None = None
        self._calls: dict[int, int] = {}
        self._micro_batch_key = 0
        self.unplaced = False  # whether the position in the whole batch is not known
        self._step = self._position = self._samples = 0
        self._seeding = True
        self._saved: State = None  # the caller's
        self._begun: State = None  # at the beginning of this micro-batch
        self._originals: dict[str, Any] = {}
        self._keyed = keyed_functions(self, self._originals)

    def __enter__(self) -> Draws:
        functions = vars(F)
        for name in NAMES:
            self._originals[name] = functions[name]
        functions.update(self._keyed)
        self.remember()
        return self

    def __exit__(self, *error: object) -> None:
        vars(F).update(self._originals)
        self.give_back()

    def remember(self) -> None:
        """Keep the caller's generators as they are now."""
        self._saved = self._state()

    def give_back(self) -> None:
        """Put the caller's generators back."""
        self._set_state(self._saved)

    def pause(self) -> State:
        """Give the generators back for a while; ``resume`` takes what this returns."""
        running = self._state()
        self.give_back()
        return running

    def resume(self, running: State) -> None:
        """Keep what the caller did to the generators, and go on where ``pause`` stopped."""
        self.remember()
        self._set_state(running)

    def _state(self) -> State:
        return self._cpu.get_state(), None if self._device is None else self._device.get_state()

    def _set_state(self, state: State) -> None:
        assert state is not None
        self._cpu.set_state(state[0])
        if self._device is not None and state[1] is not None:
            self._device.set_state(state[1])

    def micro_batch(self, step: int, position: int, samples: int) -> None:
        """A micro-batch begins: ``samples`` samples from ``position`` in the whole batch on."""
        self._step, self._position, self._samples = step, position, samples
        self._probed_shapes = None
        if self._calls:
            self._calls.clear()
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
        if not self._seeding:
            return not self._calls and not self._as_found()
        if self._device is not None and self._device.get_offset() != 0:
            return True
        self._reference.manual_seed(self._micro_batch_key)
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

    def drop(self, lead: Shape, p: float, device: torch.device, of_weight: bool = False) -> Tensor:
        """Return the boolean mask of one keyed call, True with probability ``p``, shape ``lead``."""
        if self._recording is not None:
            self._recording.append(lead)
            return torch.zeros(lead, dtype=torch.bool, device=device)
        if self.unplaced:
            raise BatchError(
                "dropout on several processes needs the samples' places in the whole batch, which this window does not "
                "tell; say how many samples it holds: MicroBatches(iterator, samples=n), or step(window, position=p)"
            )
        call = self._call()
        axis = self._axis(call, lead, of_weight)
        count = 1
        for length in lead:
            count *= length
        start = 0 if axis is None else self._position * (count // self._samples)
        bits = keys.random_bits(keys.key(self.seed, "dropout", self._step, call), start, count, device)
        dropped = (
            torch.lt(bits, min(round(p * 2**32), 2**32 - 1) - 2**31)
            if p < 1
            else torch.ones_like(bits, dtype=torch.bool)
        )
        if not axis:
            return dropped.view(lead)
        return dropped.view(lead[axis], *lead[:axis], *lead[axis + 1 :]).movedim(0, axis)

    def _call(self) -> int:
        """Which keyed call of the micro-batch this is, the same one when it is recomputed."""
        number = self._word.random_().item()
        return self._calls.setdefault(int(number), len(self._calls))

    def _axis(self, call: int, lead: Shape, of_weight: bool) -> int | None:
        """The samples' axis of a call's tensor; None where it has none (a dropped weight, say).

        Axis 0 where it is exactly as long as there are samples and no other axis is. Anything else (flattened
        tokens, sequences first, a weight, a single sample, which any length is a multiple of) is decided by a probe.
        """
        if call in self._axes:
            axis = self._axes[call]
            if axis is None or (axis < len(lead) and lead[axis] % self._samples == 0):
                return axis
        plain = len(lead) > 0 and lead[0] == self._samples > 1 and self._samples not in lead[1:] and not of_weight
        self._axes[call] = 0 if plain else self._probed(call, lead)
        return self._axes[call]

    def _probed(self, call: int, lead: Shape) -> int | None:
        """The axis whose length follows the number of samples."""
        samples = self._samples - 1 if self._samples > 1 else 2
        if self._probed_shapes is None:
            self._probed_shapes = self._record(samples)
        shapes = self._probed_shapes
        if call < len(shapes) and len(shapes[call]) == len(lead):
            for place, (length, other) in enumerate(zip(lead, shapes[call], strict=True)):
                if length != other and length * samples == other * self._samples:
                    return place
        return None

    def _record(self, samples: int) -> list[Shape]:
        """The shapes of all keyed calls of a forward with another number of samples."""
        assert self.probe is not None
        state = self._state()
        shapes: list[Shape] = []
        self._recording = shapes
        try:
            self.probe(samples)
        finally:
            self._recording = None
            self._set_state(state)
        return shapes


def _device_generator(device: torch.device) -> torch.Generator | None:
    """The default generator of an accelerator; None on the CPU."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
