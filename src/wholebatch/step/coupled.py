"""Losses that couple samples, exact for any micro-batch and number of processes, in two passes.

A contrastive loss compares every sample with every other one, so that it is no sum over samples. But it is a function
of the samples' representations, and by the chain rule its gradient needs nothing else of the whole batch:

1. every micro-batch is encoded without keeping its graph; the representations of all of them, and of all
   processes, are put together, and the loss gives its gradient with respect to each of them;
2. every micro-batch is encoded again, with the same random draws, and its part of that gradient is propagated.

So the memory is that of one micro-batch and of the representations, at the price of a second forward. A batch that is
one micro-batch is encoded once. (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup"; `--accum-freq` of open_clip does the same within one process group.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wholebatch.core.errors import InputError, InputTypeError, LossError
from wholebatch.core.processes import Processes
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.losses import LossCall
from wholebatch.step.unkeyed import unchanged_buffers

Representations = tuple[Tensor, ...]


class WholeBatchLoss(LossCall):
    """A loss of the whole batch's representations, to be passed as the loss of :class:`Step` or ``train``.

    Args:
        encode: ``encode(model, micro_batch)`` gives a tensor, or a tuple of them, each with the samples along axis 0;
            a tensor without axes (a temperature) is taken once. What needs no gradient (labels) rides along.
        loss: ``loss(*representations)`` gives the scalar loss of the whole batch; a function or an ``nn.Module``,
            whose parameters get their gradient once. Parameters of the model may be used in it, too.
        outputs: ``outputs(*representations)`` of a micro-batch gives what metrics look at, logits for instance; without
            it they have nothing to look at.

    Raises:
        InputTypeError: one of them cannot be called.

    >>> def encode(model, batch):
    ...     return torch.nn.functional.normalize(model(batch[0])), batch[1]
    >>> def contrast(z, labels):
    ...     return torch.nn.functional.cross_entropy(z @ z.T / 0.1, labels)
    >>> from wholebatch import Step
    >>> model = nn.Linear(3, 2)
    >>> step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), WholeBatchLoss(encode, contrast), micro_batch=4)
    >>> report = step((torch.randn(10, 3), torch.arange(10)))
    >>> report.micro_batches, report.weight
    (3, 1.0)
    """

    coupled = True

    def __init__(
        self,
        encode: Callable[[Any, Any], Any],
        loss: Callable[..., Tensor],
        outputs: Callable[..., Any] | None = None,
    ) -> None:
        for name, given in (("encode", encode), ("loss", loss), ("outputs", outputs)):
            if not callable(given) and not (name == "outputs" and given is None):
                raise InputTypeError(
                    f"{name} is a {type(given).__name__}; give encode(model, micro_batch) -> representations and "
                    "loss(*representations) -> scalar; outputs(*representations) is for metrics"
                )
        self._encode = encode
        self._loss = loss
        self._outputs = outputs
        self.shows_output = outputs is not None
        self.module = loss if isinstance(loss, nn.Module) else None

    def forward(self, model: nn.Module, piece: Any) -> Representations:
        """Return the representations of a micro-batch."""
        given = self._encode(model, piece)
        found = (given,) if isinstance(given, Tensor) else given
        if not isinstance(found, tuple | list) or not all(isinstance(item, Tensor) for item in found) or not found:
            raise LossError(f"encode gave a {type(given).__name__}; it gives a tensor or a tuple of tensors")
        return tuple(found)

    def shown(self, output: Any) -> Any:
        """Return what metrics look at."""
        assert self._outputs is not None
        return self._outputs(*output)

    def of_whole(self, representations: Representations) -> Tensor:
        """Return the scalar loss of all representations."""
        value = self._loss(*representations)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise LossError(f"the loss of a WholeBatchLoss gave {found}; it gives one scalar for the whole batch")
        return value.reshape(())

    def summed(self, output: Any, piece: Any, start: int, samples: int, weigh: bool) -> tuple[Tensor, float]:
        """Return the loss of a batch by itself, weighed by its samples: what evaluation reports."""
        return self.of_whole(output) * samples, samples


class _Entry(NamedTuple):
    """What every process must know of one entry of the representations."""

    shape: tuple[int, ...] | None  # of one sample's; None: a tensor without axes
    dtype: torch.dtype
    differentiable: bool


class TwoPasses:
    """The two passes of one window.

    Args:
        samples: of each micro-batch of this process.
        encode: gives the representations of the micro-batch of that number, the same whenever it is asked.
        loss: gives the scalar loss of all representations, of so many samples.
    """

    def __init__(
        self,
        samples: Sequence[int],
        encode: Callable[[int], Representations],
        loss: Callable[[Representations, int], Tensor],
    ) -> None:
        self._samples = samples
        self._encode = encode
        self._loss = loss
        self._kept: Representations | None = None  # with its graph, where there is one micro-batch alone

    def run(self, model: nn.Module, processes: Processes, accumulator: GradientAccumulator) -> None:
        """Add the gradient of the whole batch's loss to the accumulator; its value is counted by one process."""
        error: Exception | None = None
        rows: list[Tensor] = []
        entries: list[_Entry] = []
        try:
            rows, entries = self._first_pass(model)
        except Exception as caught:
            if processes.size == 1:
                raise
            error = caught
        everyones = processes.gather(None if error is not None else (sum(self._samples), entries))
        if error is not None:
            raise error
        if None in everyones or not any(count for count, _ in everyones):
            return  # another process failed, and says so at the window's end; or there is nothing
        counts = [count for count, _ in everyones]
        owner = next(rank for rank, count in enumerate(counts) if count)
        leaves = self._put_together(rows, _agreed(everyones), counts, processes, owner)
        counted = processes.rank == owner
        value, gradients = self._gradients(leaves, sum(counts), accumulator, counted)
        if rows:
            before = sum(counts[: processes.rank])
            self._second_pass(gradients, value if counted else torch.zeros_like(value), before, accumulator, counted)

    def _first_pass(self, model: nn.Module) -> tuple[list[Tensor], list[_Entry]]:
        """This process's representations, and what they are; the first micro-batch tells which need gradients."""
        parts: list[Representations] = []
        entries: list[_Entry] = []
        alone = len(self._samples) == 1
        with nullcontext() if alone else unchanged_buffers(model):
            for number, samples in enumerate(self._samples):
                with torch.set_grad_enabled(number == 0):
                    outputs = self._encode(number)
                if number == 0:
                    entries = [_Entry(_shape(o, samples), o.dtype, o.requires_grad) for o in outputs]
                    self._kept = outputs if alone else None
                parts.append(tuple(output.detach() for output in outputs))
                _check(outputs, samples, entries)
        columns = zip(*parts, strict=True)
        return [_joined(list(c), entry) for c, entry in zip(columns, entries, strict=True)], entries

    def _put_together(
        self, rows: list[Tensor], entries: list[_Entry], counts: list[int], processes: Processes, owner: int
    ) -> list[Tensor]:
        """The representations of all processes, as leaves of the loss's graph."""
        if processes.size > 1:
            before, own = sum(counts[: processes.rank]), counts[processes.rank]
            whole = []
            for number, entry in enumerate(entries):
                device = rows[number].device if rows else torch.device("cpu")
                shape = () if entry.shape is None else (sum(counts), *entry.shape)
                buffer = torch.zeros(shape, dtype=_exact(entry.dtype), device=device)
                if rows and entry.shape is not None:
                    buffer[before : before + own] = rows[number]
                elif processes.rank == owner:
                    buffer.copy_(rows[number])
                whole.append(processes.sum_(buffer).to(entry.dtype))
            rows = whole
        return [row.requires_grad_(entry.differentiable) for row, entry in zip(rows, entries, strict=True)]

    def _gradients(
        self, leaves: list[Tensor], samples: int, accumulator: GradientAccumulator, counted: bool
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss and its gradient with respect to each leaf; parameters get theirs where it is counted."""
        with torch.enable_grad():
            value = self._loss(tuple(leaves), samples)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not value.requires_grad:
            raise LossError(
                "the loss of the whole batch depends on no representation that requires gradients; is the model "
                "frozen, or does encode detach what it gives?"
            )
        _check_reached(value, {id(parameter) for parameter in accumulator.parameters}, wanted)
        if counted:
            accumulator.backward(value)
            return value.detach(), [leaf.grad for leaf in leaves]
        upstream = torch.full_like(value, accumulator.scale)
        found = iter(torch.autograd.grad(value, wanted, upstream, allow_unused=True) if wanted else ())
        return value.detach(), [next(found) if leaf.requires_grad else None for leaf in leaves]

    def _second_pass(
        self,
        gradients: list[Tensor | None],
        value: Tensor,
        before: int,
        accumulator: GradientAccumulator,
        counted: bool,
    ) -> None:
        """Propagate each micro-batch's part of the gradient; ``value`` is counted with the first one."""
        for number, samples in enumerate(self._samples):
            outputs = self._encode(number) if self._kept is None else self._kept
            self._kept = None
            pairs = []
            for output, gradient in zip(outputs, gradients, strict=True):
                once = output.ndim > 0 or (number == 0 and counted)
                if gradient is not None and output.requires_grad and once:
                    pairs.append((output, gradient[before : before + samples] if output.ndim else gradient))
            last = number == len(self._samples) - 1
            accumulator.add_outputs(pairs, value if number == 0 else torch.zeros_like(value), samples, last)
            before += samples


class Replayed:
    """The default generators, put back to where a micro-batch began when it is run again."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._begun: dict[int, tuple[Tensor, Tensor | None]] = {}

    def micro_batch(self, number: int) -> None:
        """The micro-batch of this number begins, for the first time or again."""
        if number not in self._begun:
            on_gpu = torch.cuda.get_rng_state() if self._on_gpu else None
            self._begun[number] = torch.default_generator.get_state(), on_gpu
            return
        on_cpu, on_gpu = self._begun[number]
        torch.default_generator.set_state(on_cpu)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)


def _shape(output: Tensor, samples: int) -> tuple[int, ...] | None:
    return tuple(output.shape[1:]) if output.ndim else None


def _check(outputs: Representations, samples: int, entries: list[_Entry]) -> None:
    if len(outputs) != len(entries):
        raise LossError(f"encode gave {len(entries)} tensors for one micro-batch and {len(outputs)} for another")
    for number, (output, entry) in enumerate(zip(outputs, entries, strict=True)):
        if output.ndim and len(output) != samples:
            raise LossError(
                f"representation {number} has shape {tuple(output.shape)} for a micro-batch of {samples} samples; "
                "every representation has the samples along axis 0 (stack two views of a sample along axis 1)"
            )
        if (_shape(output, samples), output.dtype) != entry[:2]:
            raise LossError(
                f"representation {number} has shape {tuple(output.shape)} and {output.dtype} in one micro-batch, but "
                f"samples of shape {entry.shape} and {entry.dtype} in another; they must be alike to be put together"
            )


def _joined(parts: list[Tensor], entry: _Entry) -> Tensor:
    return parts[0] if entry.shape is None or len(parts) == 1 else torch.cat(parts)


def _exact(dtype: torch.dtype) -> torch.dtype:
    """A dtype in which adding zeros over processes changes nothing, and that every backend adds."""
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def _agreed(everyones: Sequence[tuple[int, list[_Entry]]]) -> list[_Entry]:
    """What all processes that have samples say of the representations."""
    found = [(rank, entries) for rank, (count, entries) in enumerate(everyones) if count]
    for rank, entries in found:
        if entries != found[0][1]:
            raise LossError(
                f"encode gave {found[0][1]} on process {found[0][0]} and {entries} on process {rank}; the "
                "representations must be alike to be put together"
            )
    return found[0][1]


def _check_reached(value: Tensor, known: Collection[int], wanted: Sequence[Tensor]) -> None:
    """Refuse a loss that reaches a parameter whose gradient no step would sum."""
    own = {id(leaf) for leaf in wanted}
    seen: set[Any] = set()
    ahead = [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)  # of a node that accumulates into a leaf
        if variable is not None and id(variable) not in known and id(variable) not in own:
            raise InputError(
                f"the loss reaches a parameter of shape {tuple(variable.shape)} that neither the model nor the loss "
                "has, so its gradient would not be summed. Make the loss an nn.Module that holds it, and give its "
                "parameters to the optimizer"
            )
        ahead += [following for following, _ in node.next_functions]
