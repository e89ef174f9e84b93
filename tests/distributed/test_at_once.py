"""Totals and gradients travel at once, on what the window before has shown; windows that differ are right, too."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from engine_cases import distance
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.processes import Group, Pending
from wholebatch.step import over_processes

BAR = 1e-12
NONE, SPARSE, DENSE = range(3)
# How each of three processes uses the table in each window: the kind of gradient is another one from window to window.
WINDOWS = ["dddd", "sdsd", "----", "ssss", "d--d", "-s-s", "-s--", "dddd", "s-ds", "ssss", "----", "dddd", "dsss"]
SAMPLES = (5, 2, 4, 1)


class Table(nn.Module):
    """A table that is looked up, or multiplied, or left out; and a layer that only what is multiplied uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.rare = nn.Linear(4, 3), nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(7, 3))
        self.fails: tuple[int, Exception] | None = None  # in the forward of that number
        self.forwards = 0
        self.double()

    def forward(self, x: Tensor, rows: Tensor, kinds: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.forwards += 1
        if self.fails is not None and self.fails[0] == self.forwards:
            raise self.fails[1]
        y = torch.tanh(self.body(x))
        if (kinds == SPARSE).any():
            y = y + torch.where((kinds == SPARSE)[:, None], F.embedding(rows, self.table, sparse=True), 0)
        if (kinds == DENSE).any():
            used = F.one_hot(rows, 7).to(x) @ self.table + self.rare(x)
            y = y + torch.where((kinds == DENSE)[:, None], used, 0)
        return y


def optimizer(model: Table) -> torch.optim.Optimizer:
    layers = [*model.body.parameters(), *model.rare.parameters()]
    return torch.optim.SGD(
        [{"params": [model.table]}, {"params": layers, "momentum": 0.9, "weight_decay": 0.1}], lr=0.1
    )


def losses(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(*batch[:3]), batch[3], reduction="none")


def parts(window: int, size: int) -> list[tuple[Tensor, ...]]:
    """What every process has in a window."""
    random = torch.Generator().manual_seed(window)
    found = []
    for rank, samples in enumerate(SAMPLES[:size]):
        kind = "-sd".index(WINDOWS[window][rank])
        x = torch.randn(samples, 4, generator=random, dtype=torch.float64) * (rank + 1)
        rows, y = (torch.randint(0, upper, (samples,), generator=random) for upper in (7, 3))
        found.append((x, rows, torch.full((samples,), kind), y))
    return found


@cache
def by_hand(size: int, left_out: int | None = None) -> list[tuple[list[Tensor], list[str]]]:
    """The weights and the kinds of gradients after each window, of one process with the whole batch at once."""
    model = Table()
    sgd = optimizer(model)
    found = []
    for window in range(len(WINDOWS)):
        if window != left_out:
            sgd.zero_grad()
            losses(model, [torch.cat(of) for of in zip(*parts(window, size), strict=True)]).mean().backward()
            sgd.step()
        kinds = [over_processes.kind_of(parameter.grad) for parameter in model.parameters()]
        found.append(([parameter.detach().clone() for parameter in model.parameters()], kinds))
    return found


def training(rank: int, size: int, fails: tuple[int, int, Exception] | None = None, many: bool = False) -> Any:
    """The same over processes; ``fails``: in which window, in which process, how."""
    if many:
        over_processes.BUCKET_BYTES = over_processes.ALONE_BYTES = 64
    model = Table()
    step = wb.Step(model, optimizer(model), losses, micro_batch=2)
    found = []
    for window in range(len(WINDOWS)):
        message = ""
        if fails is not None and fails[:2] == (window, rank):
            model.fails, model.forwards = (2, fails[2]), 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", wb.OutOfMemoryWarning)
                step(parts(window, size)[rank])
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
        happened = model.fails is not None and model.forwards >= 2
        model.fails = None
        kinds = [over_processes.kind_of(parameter.grad) for parameter in model.parameters()]
        found.append(([parameter.detach().clone() for parameter in model.parameters()], kinds, message, happened))
    return found


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_kinds_of_gradients_that_change(world: Any, size: int, many: bool) -> None:
    start = [parameter.detach() for parameter in Table().parameters()]
    for of in world(size, training, None, many):
        for window, ((ours, kinds, message, _), (exact, as_one)) in enumerate(zip(of, by_hand(size), strict=True)):
            assert message == "", window
            assert distance(ours, exact) <= BAR * distance(exact, start), window
            assert kinds == as_one, window


@pytest.mark.parametrize("window", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_process_that_fails_in_any_window(world: Any, window: int, rank: int) -> None:
    ranks = world(3, training, (window, rank, ValueError("broken")))
    start = [parameter.detach() for parameter in Table().parameters()]
    for number, of in enumerate(ranks):
        expected = "ValueError: broken" if number == rank else f"PeerError: process {rank} failed: ValueError: broken"
        assert [message for _, _, message, _ in of] == ["" if at != window else expected for at in range(len(WINDOWS))]
        for at, ((ours, *_), (exact, _)) in enumerate(zip(of, by_hand(3, window), strict=True)):
            assert distance(ours, exact) <= BAR * distance(exact, start), at


@pytest.mark.parametrize("window", [0, 1, 2, 3, 8])
def test_a_process_that_runs_out_of_memory_in_any_window(world: Any, window: int) -> None:
    ranks = world(3, training, (window, 0, torch.OutOfMemoryError("injected")))
    start = [parameter.detach() for parameter in Table().parameters()]
    assert ranks[0][window][3], "it has not happened"
    for of in ranks:
        for at, ((ours, kinds, message, _), (exact, as_one)) in enumerate(zip(of, by_hand(3), strict=True)):
            assert message == "", at
            assert distance(ours, exact) <= BAR * distance(exact, start), at
            assert kinds == as_one, at


class Noted(Group):
    """Notes when a sum begins and when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def begin_sum_(self, tensor: Tensor) -> Pending:
        self.events.append("begin")
        pending, events = super().begin_sum_(tensor), self.events

        class Waits:
            def wait(self) -> None:
                events.append("wait")
                pending.wait()

        return Waits()

    def sum_(self, tensor: Tensor) -> Tensor:
        self.events.append("sum")
        return super().sum_(tensor)


def noting(rank: int, size: int) -> list[list[str]]:
    model = nn.Linear(3, 2).double()
    noted = Noted()
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), group=noted)
    found = []
    for _ in range(3):
        noted.events.clear()
        step((torch.ones(2, 3).double(), torch.tensor([0, 1])), position=2 * rank)
        found.append(noted.events.copy())
    return found


def test_one_wait_is_for_all(world: Any) -> None:
    at_first, *later = world(2, noting)[0]
    assert at_first[-4:] == ["begin", "wait", "begin", "wait"]
    assert later == [["begin", "begin", "wait", "wait"]] * 2
