"""Metrics that are not this library's, on several processes: what they say is about all samples, and nobody waits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed, nn

import wholebatch as wb
from wholebatch.core.record import Observer


class Median:
    """Of the first scores: no sum, and it knows nothing of other processes."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.seen.append(output[:, 0] * target)

    def compute(self) -> torch.Tensor:
        return torch.cat(self.seen).median()  # an error where nothing was seen

    def reset(self) -> None:
        self.seen = []


class Wrong:
    """Asks the other processes when it is read, and says so as those of torchmetrics do."""

    sync_on_compute = True

    def __init__(self) -> None:
        self.reset()

    def update(self, output: torch.Tensor, target: torch.Tensor) -> None:
        self.sums += torch.stack([(output.argmax(1) != target).sum(), torch.tensor(len(target))])

    def compute(self) -> torch.Tensor:
        sums = self.sums.clone()
        if distributed.is_initialized():
            distributed.all_reduce(sums)
        return sums[0]

    def reset(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.int64)


class Reading(Observer):
    """Reads the running values after every step, as a display does; it is told of nothing but in the first process."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def step(self, progress: Any) -> None:
        self.seen.append(set(progress.read()))


def data(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, 4, dtype=torch.float64, generator=generator), torch.arange(samples) % 3


def net() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def measuring(rank: int, size: int) -> Any:
    """Evaluations, one of which leaves a process without samples, and the records of a training."""
    metrics = {"median": Median(), "wrong": Wrong(), "accuracy": wb.Accuracy(3)}
    found = [wb.evaluate(net(), data(samples), metrics=metrics, batch_size=5) for samples in (23, 2, 23)]
    found.append({"left in the metric": float(len(torch.cat(metrics["median"].seen)))})
    reading = Reading()
    history = wb.train(
        net(),
        data(17),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD,
        batch_size=5,
        epochs=2,
        micro_batch=2,
        metrics=metrics,
        eval_data=data(2),
        observers=[reading],
        display=False,
    )
    found += [{name: record[name] for name in metrics} for record in history.records]
    return found, reading.seen


def test_strangers_see_every_sample_once(world: Any) -> None:
    exact, read = measuring(0, 1)
    assert read == [{"loss", "lr", "median", "wrong", "accuracy"}] * 8
    for rank, (found, seen) in enumerate(world(3, measuring)):
        assert len(found) == len(exact) == 8
        for mine, theirs in zip(found, exact, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-12)
        # what would have to ask the others is left out of what one process reads by itself
        assert seen == ([{"loss", "lr", "accuracy"}] * 8 if rank == 0 else [])


class Two(Median):
    """Fails where it has not seen two samples."""

    def compute(self) -> torch.Tensor:
        first, second = self.seen
        return first + second


def failing(rank: int, size: int) -> Any:
    """The second process's sample cannot be measured, without which the metric fails in every process."""
    inputs, targets = data(2)
    targets[1] = 9
    try:
        wb.evaluate(net(), (inputs, targets), metrics=Two(), loss=nn.CrossEntropyLoss())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def test_the_first_cause_is_what_is_said(world: Any) -> None:
    first, second = world(2, failing)
    assert first == f"PeerError: process 1 failed: {second}"
    assert "Target 9 is out of bounds" in second
