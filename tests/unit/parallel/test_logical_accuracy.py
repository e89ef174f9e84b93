"""Sending less costs next to no accuracy: digits, a small network, two seeds."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import nn

import wholebatch as wb

EPOCHS = 15


def accuracy(parallel: Any) -> float:
    """In percent, of 360 images, the mean of two seeds."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        loader = wb.data.BatchLoader(wb.data.digits("train"), 128, seed=seed)
        wb.train(
            model,
            loader,
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            schedule=wb.CosineScheduler(EPOCHS * len(loader), base_lr=0.1),
            epochs=EPOCHS,
            parallel=parallel,
            display=False,
        )
        found.append(100 * wb.evaluate(model, wb.data.digits("test"))["accuracy"])
    return statistics.mean(found)


def test_within_one_point_of_plain() -> None:
    plain = accuracy(None)
    assert plain > 96
    for way in ({"compress": "bf16"}, {"compress": {"powersgd": 4}}, {"local_steps": 8}):
        assert accuracy({"workers": 4, **way}) > plain - 1, way
