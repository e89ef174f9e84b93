"""A language model on several processes: bytes are counted over all of them before anything is divided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb

BAR = 1e-12


def made() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A model of dropout 0.2, and nine paragraphs, the shortest first, so that the second process has more bytes."""
    data = wb.data.text("test", length=32)
    order = (data.targets != -100).sum(1).argsort(stable=True)
    batch = data.take(order[torch.linspace(0, len(order) - 1, 9).long()])
    model = wb.models.build("transformer_lm", seed=2, length=32, width=16, depth=1, heads=2, dropout=0.2).double()
    for parameter in model.parameters():
        parameter.data.mul_(5)
    return model, batch


def stepping(rank: int, size: int, micro_batch: int) -> tuple[Tensor, float, float]:
    model, (inputs, targets) = made()
    start, stop = 9 * rank // size, 9 * (rank + 1) // size
    step = wb.Step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=micro_batch, seed=3
    )
    report = step((inputs[start:stop], targets[start:stop]))
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]), report.loss, report.weight


def test_two_processes_take_the_step_of_one(world: Callable[..., list[Any]]) -> None:
    truth, loss, weight = stepping(0, 1, 9)
    for found, mean, count in world(2, stepping, 2):
        assert (found - truth).norm() < BAR * truth.norm()
        assert abs(mean - loss) < BAR * loss
        assert count == weight


def test_a_mean_over_processes_would_be_another() -> None:
    model, (inputs, targets) = made()
    model.eval()

    def gradient(*parts: tuple[Tensor, Tensor]) -> Tensor:
        model.zero_grad()
        for x, y in parts:
            (F.cross_entropy(model(x), y) / len(parts)).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    truth = gradient((inputs, targets))
    averaged = gradient((inputs[:4], targets[:4]), (inputs[4:], targets[4:]))
    assert (averaged - truth).norm() > 0.1 * truth.norm()


def training(rank: int, size: int) -> tuple[list[dict[str, Any]], Tensor]:
    model, batch = made()
    history = wb.train(
        model,
        batch,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        batch_size=4,
        micro_batch=3 - size,
        epochs=2,
        eval_data=batch,
        display=False,
    )
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return [{key: record[key] for key in ("loss", "accuracy")} for record in history.select("test", "epoch")], weights


def test_training_is_that_of_one_process(world: Callable[..., list[Any]]) -> None:
    records, truth = training(0, 1)
    for found, weights in world(2, training):
        assert (weights - truth).norm() < 1e-12 * truth.norm()
        for ours, theirs in zip(records, found, strict=True):
            assert abs(ours["loss"] - theirs["loss"]) < 1e-12 * ours["loss"]
            assert ours["accuracy"] == theirs["accuracy"]
