"""How much memory a step takes, found out without running the model: on fake tensors, which have no contents.

A step is run on them, its optimizer included, and the bytes alive are counted (:mod:`wholebatch.step.live_bytes`).
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.core.errors import ConfigError, InputError
from wholebatch.step.live_bytes import LiveBytes
from wholebatch.step.losses import bind
from wholebatch.step.masters import Masters
from wholebatch.step.precision import autocast, check_precision, is_half, lower, step_in_own_dtype, sum_in_float32
from wholebatch.step.recompute import recompute

_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_FEW, _MORE = 4, 16  # micro-batches between which memory grows along a straight line


@dataclass(frozen=True)
class Plan:
    """Bytes of one step. Of sizes: all but the activations do not depend on the micro-batch."""

    parameters: int
    gradients: int
    optimizer: int
    """The optimizer's state after its first step."""
    buffers: int
    activations_per_sample: int
    """What one more sample in the micro-batch keeps alive until its backward pass, its inputs included."""
    activations_fixed: int
    precision: str
    memory: int | None
    samples: int
    """Of the batch that was given."""
    _peaks: Callable[[int], int] = field(repr=False)

    def peak(self, micro_batch: int) -> int:
        """Return the largest number of bytes alive at once in a step with this micro-batch.

        Counted: parameters, gradients, optimizer state, buffers, one micro-batch and all that its forward and backward
        pass make. Not counted: the rest of the batch, the process itself (Python and torch, some 300 MB), and what
        kernels allocate inside themselves on a GPU.

        Raises:
            InputError: the micro-batch is not positive.
        """
        if micro_batch < 1:
            raise InputError(f"micro_batch={micro_batch}; a micro-batch has 1 sample or more")
        return self._peaks(micro_batch)

    def largest(self, memory: int | str | None = None) -> int:
        """Return the largest micro-batch whose peak fits into ``memory`` (bytes, or "8GiB"); 0 where none does.

        Raises:
            ConfigError: no memory was said, here or in the plan, or it cannot be read.
        """
        room = self.memory if memory is None else bytes_of(memory)
        if room is None:
            raise ConfigError("largest() needs to know the memory: largest('8GiB'), or plan(…, memory='8GiB')")
        if self.peak(_FEW) > room:
            return next((size for size in range(_FEW - 1, 0, -1) if self.peak(size) <= room), 0)
        low, high = _FEW, 2 * _FEW
        while high < 2**24 and self._line(high) <= room:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._line(middle) <= room else (low, middle)
        while self.peak(low) > room:  # the line is a little under the truth
            low = max(_FEW, min(low - 1, int(low * room / self.peak(low))))
        return low

    def _line(self, micro_batch: int) -> float:
        """The peak by a straight line through two of them, which is quickly said."""
        one, other = self.peak(_FEW), self.peak(_MORE)
        return one + (other - one) * (micro_batch - _FEW) / (_MORE - _FEW)

    def as_dict(self, batch_size: int | None = None) -> dict[str, Any]:
        """Return the plan as numbers for programs (bytes)."""
        names = ("parameters", "gradients", "optimizer", "buffers", "activations_per_sample", "activations_fixed")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found |= {"precision": self.precision, "memory": self.memory}
        if self.memory is not None:
            largest = self.largest()
            micro = min(largest, batch_size) if batch_size else largest
            found |= {"largest_micro_batch": largest, "peak": self.peak(micro) if micro else None}
            if batch_size and micro:
                found |= {"batch_size": batch_size, "micro_batches": -(-batch_size // micro)}
        return found

    def to_json(self, batch_size: int | None = None) -> str:
        """Return :meth:`as_dict` as one line of JSON."""
        return json.dumps(self.as_dict(batch_size))


def plan(
    model: nn.Module,
    batch: Any,
    optimizer: Optimizer | Callable[..., Optimizer] | None = None,
    precision: str = "fp32",
    memory: int | str | None = None,
    *,
    loss: Any = None,
    recompute_layers: str | None = None,
    shard: int = 1,
) -> Plan:
    """Return how much memory a step of ``model`` takes; nothing is run, and the model stays as it is.

    Args:
        model: any module whose sizes do not depend on the values that it sees.
        batch: a batch of any number of samples, of the right shapes: ``(inputs, *targets)``, or what the loss reads.
        optimizer: an optimizer of the model's parameters, a callable that makes one of them, or None.
        precision: what :class:`Step` takes. With "bf16-true" the float32 copies of the parameters count as the
            optimizer's; gradients of bfloat16 parameters are float32.
        memory: bytes, or "8GiB"; what :meth:`Plan.largest` then fills.
        loss: what :class:`Step` takes; the sum of the outputs, if none.
        recompute_layers: layers that run again in the backward pass (:func:`recompute`).
        shard: the number of processes that parameters, gradients and optimizer state are spread over; the largest
            direct child of the model is whole at a time.

    Raises:
        ConfigError: an unknown precision, or a memory that cannot be read.
        InputError: the model cannot be run without values.

    >>> p = plan(nn.Linear(10, 5, bias=False), torch.zeros(4, 10), torch.optim.Adam)
    >>> p.parameters, p.gradients, p.optimizer
    (200, 200, 404)
    """
    check_precision(precision)
    if isinstance(shard, bool) or not isinstance(shard, int) or shard < 1:
        raise ConfigError(f"shard={shard!r}; expected a number of processes, 1 or more")
    run = _Run(model, batch, optimizer, precision, loss, recompute_layers)
    static = {name: -(-size // shard) for name, size in run.static.items()}
    gathered = 0 if shard == 1 else run.largest_child
    saved = sum(run.static.values()) - sum(static.values()) - gathered
    one, other = run.kept(_FEW), run.kept(_MORE)
    per_sample = max(0, (other - one) // (_MORE - _FEW))
    return Plan(
        parameters=static["parameters"],
        gradients=static["gradients"],
        optimizer=static["optimizer"],
        buffers=run.buffers,
        activations_per_sample=per_sample,
        activations_fixed=max(0, one - _FEW * per_sample),
        precision=precision,
        memory=None if memory is None else bytes_of(memory),
        samples=tree.count(batch),
        _peaks=lambda micro_batch: run.peak(micro_batch) - saved,
    )


def bytes_of(memory: int | str) -> int:
    """Return a number of bytes from 8589934592, "8GiB", "500 MB".

    >>> bytes_of("8GiB"), bytes_of("1.5 kB")
    (8589934592, 1500)

    Raises:
        ConfigError: it is no such thing.
    """
    text = str(memory).strip().lower()
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = text[len(digits) :].strip() or "b"
    try:
        found = int(float(digits) * _UNITS[unit])
    except (KeyError, ValueError):
        found = 0
    if found < 1:
        raise ConfigError(f"memory={memory!r}; expected bytes or a number with a unit, such as 8GiB or 500MB")
    return found


class _Run:
    """Steps on fake tensors, one for every micro-batch that is asked for."""

    def __init__(
        self, model: nn.Module, batch: Any, optimizer: Any, precision: str, loss: Any, recompute_layers: str | None
    ) -> None:
        self._model = model
        self._batch = batch
        self._samples = tree.count(batch)
        self._optimizer = optimizer
        self._precision = precision
        self._loss = None if loss is None else bind(loss)
        self._recompute = recompute_layers
        self._found: dict[int, tuple[int, int]] = {}
        self._masters: Masters | None = None
        self.static: dict[str, int] = {}
        self.buffers = 0
        self._step(_FEW)

    @property
    def largest_child(self) -> int:
        """Bytes of the parameters of the model's largest direct child."""
        return max((_bytes(child.parameters()) for child in self._model.children()), default=0)

    def peak(self, samples: int) -> int:
        """The largest number of bytes alive in a step whose micro-batches have so many samples."""
        return self._step(samples)[0]

    def kept(self, samples: int) -> int:
        """The bytes alive between the forward and the backward pass of a micro-batch, beside what is always there."""
        return self._step(samples)[1]

    def _step(self, samples: int) -> tuple[int, int]:
        if samples not in self._found:
            try:
                self._found[samples] = self._count(samples)
            except (ConfigError, InputError):
                raise
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
                raise InputError(
                    f"the model cannot be planned with {samples} samples: {type(error).__name__}: {reason}. Its sizes "
                    "must not depend on values, and it must take any number of samples"
                ) from error
        return self._found[samples]

    def _count(self, samples: int) -> tuple[int, int]:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(), torch.random.fork_rng(devices=[]):
            model, optimizer = self._fakes()
            apply_by = self._lowered(model, optimizer)
            batch = tree.map_tensors(lambda tensor: self._of_size(tensor, samples), self._batch)
            live = LiveBytes()
            with live:
                live.hold([*model.parameters(), *model.buffers()])
                before = live.now
                if self._masters is not None:
                    live.hold(self._masters.state_dict().values())
                masters = live.now - before
                tree.map_tensors(lambda tensor: live.hold([tensor]), batch)
                self._micro_batch(model, batch, live)
                gradients = [p.grad for p in model.parameters() if p.grad is not None]
                before = live.now
                self.static["optimizer"] = masters
                if optimizer is not None:
                    apply_by(optimizer)
                    self.static["optimizer"] += live.now - before
                for parameter in model.parameters():
                    parameter.grad = None
                del gradients
                live.peak = live.now
                always = live.now - _bytes_of_batch(batch)
                self._micro_batch(model, batch, live)
                kept = self._micro_batch(model, batch, live)  # with the gradients of the one before
                if optimizer is not None:
                    apply_by(optimizer)
        self.static["parameters"] = _bytes(model.parameters())
        self.static["gradients"] = sum(p.numel() * (4 if is_half(p) else p.element_size()) for p in _trained(model))
        self.buffers = _bytes(model.buffers())
        return live.peak, kept - always - self.static["gradients"]

    def _micro_batch(self, model: nn.Module, batch: Any, live: LiveBytes) -> int:
        """Run forward and backward; return the bytes alive in between."""
        with autocast(self._precision, torch.device("cpu")):
            if self._loss is None:
                output = model(batch[0] if isinstance(batch, tuple | list) else batch)
                total = torch.stack([out.float().sum() for out in _tensors(output) if out.requires_grad]).sum()
            else:
                output = self._loss.forward(model, batch)
                total = self._loss.summed(output, batch, 0, tree.count(batch), False)[0]
        del output
        kept = live.now
        total.backward()
        return kept

    def _fakes(self) -> tuple[nn.Module, Optimizer | None]:
        """Copies of model and optimizer on fake parameters."""
        memo: dict[int, Any] = {}
        for parameter in self._model.parameters():
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            memo[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for buffer in self._model.buffers():
            memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
        given = self._optimizer
        if isinstance(given, Optimizer):
            memo[id(given.state)] = defaultdict(dict)
        model = copy.deepcopy(self._model, memo)
        if self._recompute is not None:
            recompute(model, self._recompute)
        if given is None:
            return model, None
        return model, copy.deepcopy(given, memo) if isinstance(given, Optimizer) else given(model.parameters())

    def _lowered(self, model: nn.Module, optimizer: Optimizer | None) -> Callable[[Optimizer], None]:
        """Make the model what the precision makes it; return how the optimizer steps."""
        self._masters = None
        if self._precision == "bf16-true":
            if optimizer is not None:
                self._masters = Masters(dict(model.named_parameters()), optimizer)
            lower(model)
            if self._masters is not None:
                self._masters.begin()
        sum_in_float32(model.parameters())
        return step_in_own_dtype if self._masters is None else self._masters.step

    def _of_size(self, tensor: Tensor, samples: int) -> Tensor:
        whole = tensor.ndim == 0 or len(tensor) != self._samples
        return torch.empty(tensor.shape if whole else (samples, *tensor.shape[1:]), dtype=tensor.dtype)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes_of_batch(batch: Any) -> int:
    return _bytes(_tensors(batch))


def _tensors(nested: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree.map_tensors(found.append, nested)
    return found
