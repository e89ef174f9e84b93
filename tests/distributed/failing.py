"""A process of three in which one fails, in the way and at the place that the arguments say.

Arguments: the way ("step", "data", "observer", "kill", "segfault", "hang", "mistake"), then the run folder.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import resuming
import torch
from torch import nn

import wholebatch as wb
from wholebatch.core.record import Observer, Progress
from wholebatch.data import BatchLoader, ShiftRotate

RANK = int(os.environ.get("RANK", "0"))


def fail() -> None:
    raise RuntimeError("the disk of rank one is gone")


def hang() -> None:
    while True:
        time.sleep(1)


ACTIONS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
    "hang": hang,
}


class Watcher(Observer):
    """Told in rank 0 alone, unlike the others."""

    def step(self, progress: Progress) -> None:
        if progress.step == 3:
            raise OSError("the observer's connection broke")


class Model(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.inner, self.way, self.calls = resuming.model(), way, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        if RANK == 1 and self.calls == 4 and self.way == "step":
            fail()
        return self.inner(x)


class Broken(ShiftRotate):
    """A transform that cannot read its data in one process."""

    calls = 0

    def __call__(self, batch: Any, **place: Any) -> Any:
        self.calls += 1
        if RANK == 1 and self.calls == 3:
            fail()
        return super().__call__(batch, **place)


def main(way: str, folder: str) -> None:
    torch.set_num_threads(1)
    observers: list[Observer] = [resuming.At(1, {3: ACTIONS[way]} if RANK == 1 and way in ACTIONS else {})]
    if way == "observer":
        observers.append(Watcher())
    kind = Broken if way == "data" else ShiftRotate
    data = BatchLoader(resuming.dataset(), resuming.BATCH, seed=11, transform=kind(0.7, 10.0))
    more = {"clip_norm": 1.0} if way == "mistake" and RANK == 1 else {}
    wb.parallel.init()
    resuming.train(folder, Model(way), data=data, observers=observers, **more)


if __name__ == "__main__":
    main(*sys.argv[1:])
