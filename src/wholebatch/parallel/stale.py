"""Stale gradients, for study: every step computes a gradient, and applies the one of k steps before.

This is what asynchronous training does to the mathematics, without its chance: each logical worker's gradient is
applied exactly k steps late. The first k steps apply nothing, and the last k gradients are never applied. What is
applied is the mean of its own step: divided by the weight of its batch.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from wholebatch.core.errors import InputError
from wholebatch.core.processes import Processes
from wholebatch.parallel.per_worker import WorkersEngine


class StaleEngine(WorkersEngine):
    """Sums gradients, and gives back those of ``late`` steps before."""

    def __init__(self, processes: Processes, workers: int, late: int) -> None:
        super().__init__(processes, workers)
        self._late = late
        self._waiting: deque[dict[str, Tensor]] = deque()  # mean gradients by parameter name, the oldest first

    @property
    def mode(self) -> str:
        """In words, for the history."""
        return f"{self.workers} workers, gradients {self._late} step{'s' * (self._late > 1)} late"

    def combine(self, present: list[int], weight: float) -> None:
        """Sum over all workers; put that in the queue, and the oldest of the queue into ``.grad``."""
        super().combine(present, weight)
        found = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if parameter.grad is not None:
                found[name] = parameter.grad / weight
            parameter.grad = None
        self._waiting.append(found)
        if len(self._waiting) <= self._late:
            return
        oldest = self._waiting.popleft()
        for name, parameter in zip(self.names, self.parameters, strict=True):
            if name in oldest:
                parameter.grad = oldest[name].to(parameter.device) * weight

    def state_dict(self) -> dict[str, Any]:
        """Return the gradients that wait; every process has all of them."""
        return {"late": self._late, "waiting": [dict(one) for one in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them over.

        Raises:
            InputError: they wait for another number of steps.
        """
        if state.get("late") != self._late:
            raise InputError(f"this state is of gradients {state.get('late')} steps late, and not {self._late}")
        self._waiting = deque({name: g.clone() for name, g in one.items()} for one in state["waiting"])
