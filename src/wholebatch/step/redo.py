"""Out of memory is not the end: the window is made again from its beginning, in smaller micro-batches.

What a window changes before it is applied is the gradients (which every window starts without), the generators, and
the model's buffers; those are kept when it begins, and put back. All processes learn of it where they add up the
window, and make it again together.

Out of memory is recognised by the exception's type: ``torch.OutOfMemoryError`` of an accelerator, ``MemoryError`` of
NumPy and Python. The CPU's allocator has no type of its own, but a plain ``RuntimeError`` as everything else; it is
taken for out of memory where the operating system limits the process's memory and what the micro-batch takes by the
plan is no less than an eighth of what was left (:mod:`wholebatch.step.micro_batch_size`). Without such a limit the
kernel ends a process that takes too much, and nobody is asked.
"""

from __future__ import annotations

import gc
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.errors import OutOfMemoryError, OutOfMemoryWarning
from wholebatch.core.processes import Processes
from wholebatch.step.available import left_by_limits

_ALWAYS_KEPT = 1 << 20  # elements; a buffer up to this size is kept in every step, a larger one when it has changed


class RanOut(Exception):
    """This process, or another one, ran out of memory in this window."""


def ran_out(error: BaseException) -> bool:
    """Return whether an error says, by its type, that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def may_be_short(error: BaseException) -> bool:
    """Return whether an error may be that of the CPU's allocator: a plain ``RuntimeError`` in a process with limits."""
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error) is RuntimeError and left_by_limits() is not None


def forget(error: BaseException) -> str:
    """Let go of what an error's frames hold, activations among it; return its first line."""
    said = str(error).strip().splitlines()
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__
    return said[0] if said else type(error).__name__


def free() -> None:
    """Give back what nobody uses any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Beginning:
    """The generators and the buffers of modules as they were when a window began."""

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._owners = [part._buffers for module in modules for part in module.modules()]
        self._cuda = device if device.type == "cuda" else None
        self._kept: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor, int | None]] = []
        self._generators: tuple[Tensor, Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what was kept stays with the original."""
        return {**vars(self), "_kept": [], "_generators": None}

    def keep(self, generators: bool = True) -> None:
        """Keep them as they are now; without ``generators`` somebody else gives those back."""
        self._generators = None
        if generators:
            on_gpu = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
            self._generators = torch.default_generator.get_state(), on_gpu
        if not self._kept and not any(self._owners):
            return  # no buffers
        before = {(id(owner), name): rest for owner, name, *rest in self._kept}
        self._kept = []
        for owner in self._owners:
            for name, tensor in owner.items():
                if tensor is not None:
                    self._kept.append((owner, name, tensor, *_copied(tensor, before.get((id(owner), name)))))

    def put_back(self) -> None:
        """Make them what they were."""
        if self._generators is not None:
            torch.default_generator.set_state(self._generators[0])
            if self._cuda is not None and self._generators[1] is not None:
                torch.cuda.set_rng_state(self._generators[1], self._cuda)
        with torch.no_grad():
            for owner, name, tensor, copy, _ in self._kept:
                owner[name] = tensor
                tensor.copy_(copy)


def _copied(tensor: Tensor, earlier: Sequence[Any] | None) -> tuple[Tensor, int | None]:
    """A copy of a tensor and its version; batch norm changes its buffers without a new version."""
    version = None if tensor.is_inference() else tensor._version
    same = earlier is not None and earlier[0] is tensor and earlier[1].shape == tensor.shape
    if earlier is None or not same:
        return tensor.detach().clone(), version
    if tensor.numel() <= _ALWAYS_KEPT or version is None or earlier[2] != version:
        earlier[1].copy_(tensor.detach())
    return earlier[1], version


@dataclass(frozen=True)
class Word:
    """What a process says of a window in which some process ran out of memory.

    Attributes:
        samples: of the micro-batch in which this one ran out; 0 where it did not.
        most: the largest micro-batch of its window, in samples or in tokens.
        single: whether no micro-batch of its window could be smaller: of one sample, or of one group of batch norm.
        again: whether its window can be made again.
        said: the first line of the error.
    """

    samples: int
    most: int
    single: bool
    again: bool
    said: str


_HELP = (
    "What would help: layers recomputed in the backward pass (recompute_layers of wholebatch.plan), precision='bf16', "
    "another optimizer, smaller samples, or a model spread over several devices; wholebatch.plan(model, batch, "
    "optimizer) says how much each of them saves"
)


def agreed(processes: Processes, own: Word, unit: str, where: str, align: int = 1) -> int:
    """Return the micro-batch, in samples or tokens, to make the window again with; every process calls this.

    ``align`` is what a micro-batch in samples is a multiple of.

    Raises:
        OutOfMemoryError: on every process: one sample (or group) alone does not fit, or a window cannot be made again.
    """
    everyones: list[Word] = processes.gather(own)
    short = [(rank, word) for rank, word in enumerate(everyones) if word.samples]
    alone = next(((rank, word) for rank, word in short if word.single), None)
    if alone is not None:
        few = "one sample" if alone[1].samples == 1 else f"{alone[1].samples} samples, normalised together,"
        raise OutOfMemoryError(
            f"out of memory in {where}{_on(processes, alone[0])} with {few} in the micro-batch: {alone[1].said}. "
            + _HELP
        )
    used_up = next((rank for rank, word in enumerate(everyones) if not word.again), None)
    rank, first = short[0]
    told = f"out of memory in {where}{_on(processes, rank)} with {first.samples} samples in the micro-batch"
    if used_up is not None:
        raise OutOfMemoryError(
            f"{told}: {first.said}. The step cannot be made again, since its window{_on(processes, used_up)} is an "
            "iterator, which is used up; give what can be iterated over again, such as MicroBatches(list(pieces)), or "
            "smaller pieces"
        )
    most = min(word.most for _, word in short)
    smaller = max(1, most // 2) if unit == "tokens" else max(1, most // 2 // align) * align
    if processes.rank == 0:
        warnings.warn(
            f"{told}; the step is made again from its beginning with at most {smaller} {unit} in a micro-batch, and so "
            "are the later ones. The batch, the weights and the order of the data are as they were",
            OutOfMemoryWarning,
            stacklevel=4,
        )
    return smaller


def _on(processes: Processes, rank: int) -> str:
    return f" on process {rank}" if processes.size > 1 else ""
