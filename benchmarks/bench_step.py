"""What an exact ``Step`` costs, compared with loops by hand, and what keyed dropout costs, compared with torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import one_thread, ratio
from wholebatch import Step
from wholebatch.step.draws import Draws

MICRO_BATCH = 64
PIECES = 4
STEPS = 100  # in each timing
ROUNDS = 41
MEAN, SUM = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def _step(by_hand: Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], object]) -> float:
    generator = torch.Generator().manual_seed(0)
    samples = PIECES * MICRO_BATCH
    x, y = torch.randn(samples, 32, generator=generator), torch.randint(10, (samples,), generator=generator)
    first, second = _model(), _model()
    step = Step(first, torch.optim.SGD(first.parameters(), lr=0.01), nn.CrossEntropyLoss(), micro_batch=MICRO_BATCH)
    optimizer = torch.optim.SGD(second.parameters(), lr=0.01)

    def ours() -> None:
        for _ in range(STEPS):
            step((x, y))

    def bare() -> None:
        for _ in range(STEPS):
            by_hand(second, optimizer, x, y)

    return ratio(ours, bare, ROUNDS)


def to_mean_of_means(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """The usual loop, right only where all micro-batches weigh alike: mean loss divided by their number."""
    total = torch.zeros(())
    optimizer.zero_grad()
    for start in range(0, len(x), MICRO_BATCH):
        loss = MEAN(model(x[start : start + MICRO_BATCH]), y[start : start + MICRO_BATCH]) / PIECES
        loss.backward()
        total += loss.detach()
    optimizer.step()


def to_sum_divided_once(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """The same by sums: the gradient of the summed loss, divided once by the number of targets that count."""
    total = torch.zeros(())
    optimizer.zero_grad()
    count = (y != -100).sum().item()
    for start in range(0, len(x), MICRO_BATCH):
        loss = SUM(model(x[start : start + MICRO_BATCH]), y[start : start + MICRO_BATCH])
        loss.backward()
        total += loss.detach()
    torch._foreach_div_([p.grad for p in model.parameters() if p.grad is not None], count)
    optimizer.step()


def _dropout(shape: tuple[int, int], backward: bool, calls: int) -> float:
    x = torch.ones(shape, requires_grad=backward).view(shape)  # an activation, no weight
    ones = torch.ones(shape)

    def work(function: Callable[..., Tensor]) -> None:
        for _ in range(calls):
            out = function(x, 0.5)
            if backward:
                torch.autograd.grad(out, x, ones)

    draws = Draws(0, torch.device("cpu"))

    def ours() -> None:
        with draws:
            draws.micro_batch(0, 0, shape[0])
            work(F.dropout)

    return ratio(ours, lambda: work(F.dropout), ROUNDS)


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for each claim."""
    large, small = (1024, 1000), (64, 16)
    with one_thread():
        return [
            ("Step, tiny MLP, 4 x 64, to a loop with mean loss / 4", _step(to_mean_of_means), 1.05),
            ("Step, tiny MLP, 4 x 64, to a loop with sums, divided once", _step(to_sum_divided_once), 1.05),
            ("keyed dropout to F.dropout, 1024 x 1000, forward", _dropout(large, False, 2), 1.0),
            ("keyed dropout to F.dropout, 1024 x 1000, with backward", _dropout(large, True, 2), 1.0),
            ("keyed dropout to F.dropout, 64 x 16, forward", _dropout(small, False, 500), 3.0),
            ("keyed dropout to F.dropout, 64 x 16, with backward", _dropout(small, True, 500), 3.0),
        ]
