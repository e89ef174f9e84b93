"""The engine of bitwise mode: the gradient of each micro-batch is one summand of an order-free sum.

Every backward starts from no gradients; what it gives is rounded and added as int64 (:mod:`wholebatch.sums.order_free`)
and forgotten. At the window's end three things cross: the loss and the weight of every micro-batch, each in a place of
its own, with flags and counts, in one float64 buffer; the largest summands; and the multiples, as int64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from wholebatch.core.errors import InputError
from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Processes
from wholebatch.step.micro_norm import MicroNorms
from wholebatch.step.over_processes import BUCKET_BYTES, Totals
from wholebatch.step.redo import RanOut
from wholebatch.step.report import gradients_of, norm_of
from wholebatch.sums.order_free import NONE, OrderFreeSums

_TRIES = 3


class Moved(Exception):
    """A gradient is too large or too small for its bound; the window has to be made again, by every process."""


class Bitwise:
    """Sums gradients so that they have the same bits on any number of processes (an ``Engine``)."""

    overlaps = False
    sums_alone = True
    world: Processes | None = None
    lockstep = False
    stands_in = False

    def __init__(self, processes: Processes, model: nn.Module) -> None:
        self.processes = processes
        self.norms = MicroNorms(model)
        self.again = False  # whether the window is made again
        self.tries = 0
        self._model = model
        self._parameters: Sequence[Tensor] = ()
        self._like: list[tuple[torch.Size, torch.device]] = []
        self._sums = OrderFreeSums([])
        self._pending: list[int | None] | None = None  # of a state that was loaded before the first window
        self._first = self._micro_batches = 0
        self._used: list[bool] = []
        self._norm: Tensor | None = None
        self._statistics: tuple[list[Tensor], list[float]] = ([], [])
        self._buffers: list[tuple[str, dict[str, Tensor | None], str, Tensor, int]] = []

    def place(self, first: int, micro_batches: int) -> None:
        """Learn how many micro-batches the whole batch has, and which of them is this process's first."""
        self._first, self._micro_batches = first, micro_batches

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; no parameter has a gradient."""
        self._parameters = parameters
        tensors = [*parameters, *self.norms.statistics]
        like = [(tensor.shape, tensor.device) for tensor in tensors]
        if like != self._like:
            self._sums, self._like = OrderFreeSums(tensors), like
            if self._pending is not None:
                self._sums.load_state_dict({"exponents": self._pending})
                self._pending = None
        self.tries = self.tries + 1 if self.again else 1
        self._sums.begin(self._micro_batches, self.again)
        self.again = False
        self._used = [False] * len(parameters)
        self._norm = None
        self._buffers = self._other_buffers()

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Run backward, and add what it gives to the sums; the parameters have no gradient afterwards.

        Raises:
            InputError: a sparse gradient.
        """
        torch.autograd.backward((loss_sum,), (upstream,))
        gradients = [parameter.grad for parameter in self._parameters]
        if any(gradient is not None and gradient.is_sparse for gradient in gradients):
            raise InputError("bitwise mode takes no sparse gradients; make the embedding with sparse=False")
        if self._norm is None:
            self._norm = norm_of(gradients_of(self._parameters))
        self._used = [used or gradient is not None for used, gradient in zip(self._used, gradients, strict=True)]
        self._sums.add([*gradients, *self.norms.summand()])
        for parameter in self._parameters:
            parameter.grad = None

    def _other_buffers(self) -> list[tuple[str, dict[str, Tensor | None], str, Tensor, int]]:
        """The buffers that no forward may change: all but running statistics."""
        known = {id(layer) for layer in self.norms.layers}
        return [
            (f"{path}.{name}".lstrip("."), module._buffers, name, buffer, buffer._version)
            for path, module in self._model.named_modules()
            if id(module) not in known
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]

    def check_buffers(self) -> None:
        """See that the forward has left no trace in the model that the next micro-batch would find.

        Raises:
            InputError: a buffer has changed; the message names it.
        """
        for where, owner, name, buffer, version in self._buffers:
            if owner.get(name) is not buffer or buffer._version != version:
                raise InputError(
                    f"the forward changes the buffer {where!r}, so that a micro-batch depends on those that the same "
                    "process ran before; bitwise=True knows the running statistics of batch and instance norm alone. "
                    "Change it between steps, or leave bitwise out"
                )

    def own_norm(self) -> Tensor | None:
        """Return the norm of the gradient of the whole batch's first micro-batch, where that was this process's."""
        return self._norm if self._first == 0 else None

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Return the totals of all processes, when ``.grad`` holds the sums over all processes, undivided.

        Raises:
            Moved: on every process; the window has to be made again.
            InputError: a window that was made again is another one than before.
            PeerError: another process failed.
        """
        whole, used, weights = self._meet(own, error)
        largest = self._largest()
        if not self._sums.settle(largest):
            if self.tries >= _TRIES:
                raise InputError(
                    "the same window gave other gradients when it was run again, so that its bits are no function of "
                    "the data and the seed: a draw that torch's generators do not know of, a kernel that is not "
                    "deterministic, or a data set that gives something else when it is read again"
                )
            raise Moved
        under_way = [
            self.processes.begin_sum_(bucket)
            for multiples in self._sums.multiples
            for bucket in multiples.split(BUCKET_BYTES // multiples.element_size())
        ]
        for pending in under_way:
            pending.wait()
        for number, (parameter, is_used) in enumerate(zip(self._parameters, used, strict=True)):
            parameter.grad = None
            if is_used:
                gradient = torch.empty_like(parameter, dtype=parameter.grad_dtype or parameter.dtype)
                parameter.grad = gradient.copy_(self._sums.value(number))
        begin = len(self._parameters)
        count = 2 * len(self.norms.layers)
        self._statistics = [self._sums.value(begin + number) for number in range(count)], weights
        return whole

    def move_statistics(self) -> None:
        """Move the running statistics by those of the window that was finished."""
        self.norms.move(*self._statistics)

    def _meet(self, own: Totals, error: BaseException | None) -> tuple[Totals, list[bool], list[float]]:
        """The totals, which parameters any process has a gradient for, and the weights of the layers' statistics."""
        short = isinstance(error, RanOut)
        flags = [float(error is not None and not short), float(short), *map(float, self._used), *self.norms.weights]
        counts = [float(own.samples), float(own.micro_batches), own.small, own.first, own.firsts]
        each = torch.zeros(2, self._micro_batches, dtype=torch.float64)
        if error is None:
            there = slice(self._first, self._first + len(own.each))
            each[:, there] = torch.tensor(own.each, dtype=torch.float64).view(-1, 2).T
        together = torch.cat([torch.tensor([*flags, *counts], dtype=torch.float64), each.view(-1)])
        found = self.processes.sum_(together).tolist()
        failed, ran_out, *rest = found
        if failed:
            raise_together(self.processes, None if short else error)
        if ran_out:
            raise error if error is not None else RanOut
        parameters, layers = len(self._parameters), len(self.norms.layers)
        used, weights, rest = rest[:parameters], rest[parameters : parameters + layers], rest[parameters + layers :]
        samples, micro_batches, small, first, firsts, *each_one = rest
        losses, of_losses = each_one[: self._micro_batches], each_one[self._micro_batches :]
        whole = Totals(_sum(losses), _sum(of_losses), int(samples), int(micro_batches), small, first, firsts)
        return whole, [count > 0 for count in used], weights

    def _largest(self) -> Tensor:
        """The largest summands' exponents over all processes."""
        own = self._sums.largest
        if self.processes.size == 1 or not len(own):
            return own
        everyones = torch.zeros(self.processes.size, len(own), dtype=torch.int64)
        everyones[self.processes.rank] = own - NONE
        return self.processes.sum_(everyones).amax(0) + NONE

    def state_dict(self) -> dict[str, list[int | None]]:
        """Return what the bounds of the next window follow from."""
        return {"exponents": list(self._sums.exponents if self._pending is None else self._pending)}

    def load_state_dict(self, state: dict[str, list[int | None]]) -> None:
        """Go on from ``state``; it is looked at when the next window begins."""
        self._pending = list(state["exponents"]) or None
        self._like = []


def _sum(values: Sequence[float]) -> float:
    """The sum, rounded once, which no order changes; NaN and infinity as they would add."""
    total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    return total + 0.0  # -0.0 would stay that on one process alone
