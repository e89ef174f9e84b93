"""PowerSGD over logical workers: a matrix of gradients travels as two thin ones, and what is lost comes back later.

Of worker k's part g_k of the mean gradient, and what it could not send before, e_k, both of n rows and m columns:

    M_k = g_k + e_k
    P   = orthonormal(sum_k M_k Q)               n × rank
    Q_k = M_kᵀ P,  Q = sum_k Q_k                 m × rank, and where the next step begins
    the gradient: P Qᵀ;   e_k = M_k - P Q_kᵀ

Vogels, Karimireddy, Jaggi 2019, "PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
algorithms 1 and 2. Vectors, and matrices that this would not make smaller, travel whole. A parameter of more than
two axes is a matrix of its first axis and the others. The sums are added in the workers' order, so that all is the
same on any number of processes.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import InputError
from wholebatch.core.keys import generator
from wholebatch.core.processes import Processes
from wholebatch.parallel.per_worker import WorkersEngine
from wholebatch.parallel.wire import sum_in_order, to_first


class PowerSgdEngine(WorkersEngine):
    """Sums gradients by matrices of ``rank`` columns, with error feedback by parameter name and logical worker."""

    def __init__(self, processes: Processes, workers: int, rank: int) -> None:
        super().__init__(processes, workers)
        self._rank = rank
        self._q: dict[str, Tensor] = {}
        self._errors: dict[int, dict[str, Tensor]] = {worker: {} for worker in self.own}
        self._collected: dict[int, dict[str, Tensor]] | None = None

    @property
    def mode(self) -> str:
        """In words, for the history."""
        return f"{self.workers} workers, gradients by PowerSGD of rank {self._rank}"

    def combine(self, present: list[int], weight: float) -> None:
        """Compress, add and decompress; where something is not finite nothing is remembered of it."""
        self._collected = None
        for numbers in self.groups(present):
            thin = [number for number in numbers if self._is_compressed(number)]
            whole = [number for number in numbers if not self._is_compressed(number)]
            self._combine(thin, whole, weight)

    def _combine(self, thin: list[int], whole: list[int], weight: float) -> None:
        parts = {number: self._matrices(number, weight) for number in thin}
        before = {number: self._q_of(number) for number in thin}
        stacks = [torch.stack([matrix @ before[n] for matrix in parts[n]]) for n in thin]
        products = self._summed([*stacks, *([self.rows(whole, self.kept)] if whole else [])])
        if whole:
            self.spread(whole, products.pop())
        bases = [_orthonormal(product) for product in products]
        backs = [torch.stack([m.T @ base for m in parts[n]]) for n, base in zip(thin, bases, strict=True)]
        rights = self._summed(backs)
        finite = all(bool(right.isfinite().all()) for right in rights)
        for n, base, right, back in zip(thin, bases, rights, backs, strict=True):
            self.spread([n], (base @ right.T).view(-1) * weight)
            if finite:
                self._q[self.names[n]] = right
                for worker, matrix, of_worker in zip(self.own, parts[n], back, strict=True):
                    self._errors[worker][self.names[n]] = matrix - base @ of_worker.T

    def _summed(self, stacks: list[Tensor]) -> list[Tensor]:
        """The sums over all workers of (own workers, …) tensors, which travel as one."""
        if not stacks:
            return []
        rows = torch.cat([stack.flatten(1) for stack in stacks], 1)
        total = sum_in_order(self.processes, rows, self.workers)
        parts = total.split([math.prod(stack.shape[1:]) for stack in stacks])
        return [part.view(stack.shape[1:]) for part, stack in zip(parts, stacks, strict=True)]

    def _matrices(self, number: int, weight: float) -> Tensor:
        """M of every own worker: (own workers, n, m)."""
        parameter, name = self.parameters[number], self.names[number]
        matrices = self.rows([number], self.kept).view(len(self.own), parameter.shape[0], -1) / weight
        for matrix, worker in zip(matrices, self.own, strict=True):
            error = self._errors[worker].get(name)
            if error is not None:
                matrix += error
        return matrices

    def _is_compressed(self, number: int) -> bool:
        parameter = self.parameters[number]
        if parameter.ndim < 2 or not parameter.numel():
            return False
        rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
        return (rows + columns) * self._rank < rows * columns

    def _q_of(self, number: int) -> Tensor:
        """Where the step begins: the last step's, or at first a draw keyed by the parameter's name."""
        parameter, name = self.parameters[number], self.names[number]
        if name not in self._q:
            draws = generator(0, "powersgd", zlib.crc32(name.encode()))
            shape = (parameter.numel() // parameter.shape[0], self._rank)
            drawn = torch.randn(shape, generator=draws, dtype=torch.float64)
            self._q[name] = drawn.to(self.dtype(number)).to(parameter.device)
        return self._q[name]

    def collect(self) -> None:
        """Bring the errors of all workers to the first process."""
        found = to_first(self.processes, {k: _on_cpu(errors) for k, errors in self._errors.items()})
        if found is not None:
            self._collected = {worker: errors for of_process in found for worker, errors in of_process.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the right matrices by name, and the errors by worker and name."""
        errors = self._errors if self._collected is None else self._collected
        return {"rank": self._rank, "q": dict(self._q), "errors": {k: dict(of_k) for k, of_k in errors.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of this process's own workers.

        Raises:
            InputError: it is of another rank, or lacks one of these workers.
        """
        if state.get("rank") != self._rank:
            raise InputError(f"this state is of PowerSGD of rank {state.get('rank')}, and not {self._rank}")
        missing = [worker for worker in self.own if worker not in state["errors"]]
        if missing:
            raise InputError(
                f"this state lacks the logical worker {missing[0]}; call step.collect() in every process before "
                "state_dict(), and load what the first process has in all of them"
            )
        self._q = {name: q.clone() for name, q in state["q"].items()}
        self._errors = {k: {name: e.clone() for name, e in state["errors"][k].items()} for k in self.own}
        self._collected = None

    def begin(self, parameters: Any, model: Any) -> None:
        """Start a window; a state that was loaded goes where the parameters are."""
        super().begin(parameters, model)
        places = {name: parameter.device for name, parameter in zip(self.names, parameters, strict=True)}
        for kept in (self._q, *self._errors.values()):
            for name, tensor in kept.items():
                if name in places and tensor.device != places[name]:
                    kept[name] = tensor.to(places[name])


def _orthonormal(matrix: Tensor) -> Tensor:
    """An orthonormal basis of the columns, any completion where they are dependent; NaN where they are not finite."""
    if not bool(matrix.isfinite().all()):
        return torch.full_like(matrix, math.nan)
    return torch.linalg.qr(matrix).Q


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in tensors.items()}
