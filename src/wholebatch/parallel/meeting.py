"""What logical workers of local steps tell each other when they meet: what came of their steps, and how much counts.

A meeting adds the losses, weights and numbers of micro-batches of all processes since the one before, and says which
share of the whole weight each worker has. One that has failed since says so there, where the others wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wholebatch.core.failures import raise_together
from wholebatch.core.processes import Processes
from wholebatch.step import StepReport


class SinceMeeting:
    """What came of the steps of this process's workers since they last met the others.

    Attributes:
        round: the weight of each own worker's samples since the round began.
        shares: each own worker's part of the weight of all, at the last meeting.
        error: what went wrong; every process raises at the next meeting.
    """

    def __init__(self, processes: Processes, own: Sequence[int], workers: int) -> None:
        self._processes, self._own, self._workers = processes, own, workers
        self.round = dict.fromkeys(own, 0.0)
        self.shares = dict.fromkeys(own, 1 / workers)
        self.error: Exception | None = None
        self._loss_sum: Any = 0.0  # with the two next: not told yet
        self._weight, self._passed = 0.0, 0

    def add(self, worker: int, report: StepReport) -> None:
        """Count a worker's step."""
        if not report.skipped:
            self._loss_sum = self._loss_sum + report.loss_sum
            self._weight += report.weight
            self.round[worker] += report.weight
        self._passed += report.micro_batches

    def meet(self, samples: int) -> StepReport:
        """Return what came of the steps of all workers; all processes call it.

        Args:
            samples: of the whole batch, for the report.

        Raises:
            PeerError: another process has failed; this one's own ``error`` is raised where it has one.
        """
        own = torch.zeros(4 + self._workers, dtype=torch.float64)
        for place, value in enumerate((self.error is not None, self._loss_sum, self._weight, self._passed)):
            own[place] = float(value)
        for worker, weight in self.round.items():
            own[4 + worker] = weight
        failed, loss, weight, passed, *round_weights = self._processes.sum_(own).tolist()
        if failed:
            raise_together(self._processes, self.error)
        self.nothing_left()
        total = sum(round_weights)
        if total:
            self.shares = {worker: round_weights[worker] / total for worker in self._own}
        return reported(loss, weight, samples, int(passed))

    def begin_round(self) -> None:
        """Nothing counts yet."""
        self.round = dict.fromkeys(self._own, 0.0)

    def nothing_left(self) -> None:
        """All was told."""
        self._loss_sum, self._weight, self._passed = 0.0, 0.0, 0


def reported(loss: float, weight: float, samples: int, micro_batches: int) -> StepReport:
    """Return a report of these sums, with no norm."""
    report = StepReport([torch.tensor(loss, dtype=torch.float64)], weight, samples, micro_batches, False, ())
    report._norm = float("nan")
    return report
