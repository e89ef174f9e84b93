"""An engine that sums the gradients of logical workers in their order: the same bits on any number of processes.

It is what others stand on, that compress each worker's gradient or keep the sum back for some steps. A process runs
its workers one after the other; when the next one begins, the gradient of the one before is put aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.errors import InputError
from wholebatch.core.processes import Processes
from wholebatch.parallel.wire import sum_in_order
from wholebatch.step.logical import own_workers
from wholebatch.step.over_processes import Totals, add_totals
from wholebatch.step.report import gradients_of, norm_of


class WorkersEngine:
    """Sums the gradients of ``workers`` logical workers, in their order (:class:`wholebatch.step.logical.PerWorker`).

    >>> from wholebatch.core.processes import Alone
    >>> WorkersEngine(Alone(), 4).mode
    '4 workers'
    """

    overlaps = False
    sums_alone = False
    world: Processes | None = None
    lockstep = False
    stands_in = False
    processes: Processes

    def __init__(self, processes: Processes, workers: int) -> None:
        self.processes = processes
        self.workers = workers
        self.own = own_workers(processes, workers)
        self.fixed_weight: float | None = None
        self.parameters: Sequence[Tensor] = ()
        self.names: list[str] = []
        self.kept: dict[int, list[Any]] = {}  # per own worker, what is kept of each parameter's gradient
        self._worker: int | None = None
        self._next: int | None = None

    @property
    def mode(self) -> str:
        """In words, for the history."""
        return f"{self.workers} workers"

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; nothing is kept of the one before."""
        self.parameters = parameters
        found = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = [found.get(id(p), f"loss.{number}") for number, p in enumerate(parameters)]
        self.kept = {}
        self._worker = None
        self._next = self.own[0] if len(self.own) == 1 else None

    def worker(self, number: int) -> None:
        """Say whose the next micro-batch is."""
        self._next = number

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Run backward; nothing travels.

        Raises:
            InputError: nobody says whose the micro-batch is.
        """
        if self._next is None:
            raise InputError(
                f"with {self.workers} logical workers on {self.processes.size} processes only Step and train know "
                "whose a micro-batch is; with a GradientAccumulator, start as many processes as workers"
            )
        if self._next != self._worker:
            self._put_aside()
            self._worker = self._next
        torch.autograd.backward((loss_sum,), (upstream,))

    def own_norm(self) -> Tensor | None:
        """Measure ``.grad``."""
        return norm_of(gradients_of(self.parameters))

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Sum the totals, then what is kept of the gradients, in the workers' order."""
        try:
            self._put_aside()
        except InputError as found:
            if self.processes.size == 1:
                raise
            error = error or found
        here = [any(row[n] is not None for row in self.kept.values()) for n in range(len(self.parameters))]
        kinds = ["dense" if one else "none" for one in here]
        whole, kinds = add_totals(self.processes, own, kinds, error)
        weight = self.fixed_weight if self.fixed_weight is not None and whole.samples else whole.weight
        present = [number for number, kind in enumerate(kinds) if kind == "dense"]
        if weight:
            self.combine(present, float(weight))
        self.kept = {}
        return whole

    def keep(self, worker: int, gradients: list[Tensor | None]) -> list[Any]:
        """Return what is kept of the gradients of a worker that has run; None stays None."""
        return gradients

    def combine(self, present: list[int], weight: float) -> None:
        """Put the sums over all workers into ``.grad`` of the parameters of these numbers; all processes call it.

        Args:
            present: numbers of the parameters that any process has a gradient for.
            weight: of the whole batch, by which the sums will be divided.
        """
        for numbers in self.groups(present):
            self.spread(numbers, sum_in_order(self.processes, self.rows(numbers, self.kept), self.workers))

    def collect(self) -> None:
        """Nothing depends on more than the window."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: every window begins anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing over."""

    # for those that stand on it --------------------------------------------------------------------------

    def groups(self, numbers: Sequence[int]) -> Iterator[list[int]]:
        """Yield the numbers of parameters whose gradients have one dtype and device, together."""
        found: dict[Any, list[int]] = {}
        for number in numbers:
            found.setdefault((self.dtype(number), self.parameters[number].device), []).append(number)
        yield from found.values()

    def dtype(self, number: int) -> torch.dtype:
        """Return the dtype of a parameter's gradient."""
        parameter = self.parameters[number]
        return parameter.grad_dtype or parameter.dtype

    def rows(self, numbers: Sequence[int], kept: dict[int, list[Any]], dtype: torch.dtype | None = None) -> Tensor:
        """Return one row per own worker: what is kept for these parameters, flat, zeros where there is nothing."""
        first = self.parameters[numbers[0]]
        dtype = dtype or self.dtype(numbers[0])
        sizes = [self.parameters[number].numel() for number in numbers]
        rows = torch.zeros(len(self.own), sum(sizes), dtype=dtype, device=first.device)
        for row, worker in zip(rows, self.own, strict=True):
            for part, number in zip(row.split(sizes), numbers, strict=True):
                value = kept[worker][number] if worker in kept else None
                if value is not None:
                    part.copy_(value.reshape(-1))
        return rows

    def spread(self, numbers: Sequence[int], flat: Tensor) -> None:
        """Make ``flat`` the gradients of these parameters."""
        parts = flat.split([self.parameters[number].numel() for number in numbers])
        for number, part in zip(numbers, parts, strict=True):
            parameter = self.parameters[number]
            parameter.grad = part.view(parameter.shape).to(self.dtype(number))

    def _put_aside(self) -> None:
        """Keep what the worker that was at work has in ``.grad``, and leave none there."""
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        gradients = [parameter.grad for parameter in self.parameters]
        if any(gradient is not None and gradient.is_sparse for gradient in gradients):
            name = next(n for n, g in zip(self.names, gradients, strict=True) if g is not None and g.is_sparse)
            raise InputError(f"{name!r} has a sparse gradient, which {self.mode} does not take; use parallel='flat'")
        for parameter in self.parameters:
            parameter.grad = None
        self.kept[worker] = self.keep(worker, gradients)
