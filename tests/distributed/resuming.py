"""The small run that the tests of resuming interrupt: dropout, augmentation, momentum, a cosine, records of steps."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.record import Observer, Progress
from wholebatch.data import ArrayDataset, BatchLoader, ShiftRotate
from wholebatch.display import RunFolder

EPOCHS, BATCH, SAMPLES = 4, 7, 38
STEPS = EPOCHS * math.ceil(SAMPLES / BATCH)  # 24


class At(Observer):
    """Does something after a step, in the process of one rank."""

    every_process = True

    def __init__(self, rank: int, actions: dict[int, Any]) -> None:
        self.rank, self.actions = rank, actions

    def step(self, progress: Progress) -> None:
        action = self.actions.get(progress.step)
        if action is not None:
            action()


def send(number: int) -> Any:
    return lambda: os.kill(os.getpid(), number)


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Dropout(0.4), nn.Linear(12, 3)).double()


def dataset() -> ArrayDataset:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand(SAMPLES, 1, 6, 6, dtype=torch.float64, generator=generator)
    return ArrayDataset(images, torch.randint(0, 3, (SAMPLES,), generator=generator), transform=ShiftRotate(0.7, 10.0))


def train(folder: Any, made: nn.Module | None = None, **options: Any) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Train; return the weights and the records, without their times."""
    made = model() if made is None else made
    images = dataset()
    given: dict[str, Any] = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9),
        "schedule": wb.CosineScheduler(STEPS, base_lr=0.2, warmup_steps=3),
        "epochs": EPOCHS,
        "log_every": 3,
        "eval_data": (images.inputs[:10], images.targets[:10]),
        "micro_batch": 3,
        "seed": 11,
        "run_dir": folder,
        "display": False,
        **options,
    }
    data = given.pop("data", None)
    if data is None:
        data = BatchLoader(images, given.pop("batch_size", BATCH), seed=given["seed"])
    with mock.patch.object(RunFolder, "_draw"):  # pictures cost more time than all the rest
        history = wb.train(made, data, **given)
    return [p.detach().clone() for p in made.parameters()], plain(history.records)


def plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without times, and without the one estimate that depends on how batches are cut."""
    left_out = {"seconds", "noise_scale", "noise_low", "noise_high"}
    return [{name: value for name, value in record.items() if name not in left_out} for record in records]


def interrupted(rank: int, size: int, folder: str, at: int | None, options: dict[str, Any]) -> Any:
    """Train in one rank until SIGTERM, which one rank gets after step ``at``; return what came of it."""
    made = model()
    actions = {at: send(signal.SIGTERM)} if at is not None and rank == size - 1 else {}
    try:
        weights, records = train(folder, made, resume=True, observers=[At(rank, actions)], **options)
    except SystemExit as stop:
        return stop.code, [p.detach().clone() for p in made.parameters()], []
    return 0, weights, records


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def same_records(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Whether each record is there once, with the same values up to rounding."""
    if [list(record) for record in ours] != [list(record) for record in theirs]:
        return False
    return all(
        a == b if not isinstance(a, float) else math.isclose(a, b, rel_tol=1e-11, abs_tol=1e-13)
        for mine, its in zip(ours, theirs, strict=True)
        for a, b in zip(mine.values(), its.values(), strict=True)
    )


def error(ours: list[Tensor], theirs: list[Tensor]) -> float:
    off = sum(float((a - b).norm() ** 2) for a, b in zip(ours, theirs, strict=True))
    return math.sqrt(off / sum(float(b.norm() ** 2) for b in theirs))
