"""Two processes: our step against a bare DistributedDataParallel loop over the same model and batch."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import wholebatch as wb

PROCESSES = 2
ROUNDS = 15
STEPS = 4


def convolutional() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A convolutional net of a million parameters, and one process's 32 images of 32 × 32."""
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    return model, (torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,)))


def dense() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """An MLP of four million parameters, and one process's 256 samples."""
    model = nn.Sequential(nn.Linear(1024, 1536), nn.ReLU(), nn.Linear(1536, 1536), nn.ReLU(), nn.Linear(1536, 10))
    return model, (torch.randn(256, 1024), torch.randint(0, 10, (256,)))


def _measure(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    ratios = {}
    for name, make in (("conv", convolutional), ("mlp", dense)):
        torch.manual_seed(0)
        model, (x, y) = make()
        step_of_ours = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), nn.CrossEntropyLoss())
        torch.manual_seed(0)
        bare = DistributedDataParallel(make()[0])
        optimizer = torch.optim.SGD(bare.parameters(), lr=0.01, momentum=0.9)

        def theirs(
            x: Tensor = x, y: Tensor = y, bare: nn.Module = bare, optimizer: torch.optim.SGD = optimizer
        ) -> None:
            optimizer.zero_grad()
            F.cross_entropy(bare(x), y).backward()
            optimizer.step()

        def mine(x: Tensor = x, y: Tensor = y, step: wb.Step = step_of_ours, first: int = rank * len(y)) -> None:
            step((x, y), position=first)

        times: dict[str, list[float]] = {"mine": [], "theirs": []}
        for _ in range(ROUNDS + 1):
            for label, call in (("mine", mine), ("theirs", theirs)):
                distributed.barrier()
                begun = time.perf_counter()
                for _ in range(STEPS):
                    call()
                distributed.barrier()
                times[label].append(time.perf_counter() - begun)
        pairs = zip(times["mine"][1:], times["theirs"][1:], strict=True)
        ratios[name] = statistics.median(ours / bare for ours, bare in pairs)
    if rank == 0:
        Path(folder, "ratios").write_text(repr(ratios))
    time.sleep(0.05)
    distributed.destroy_process_group()


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio of times, bar): 1.02 of the time is 0.98 of the samples per second."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_measure, (folder,), nprocs=PROCESSES)
        ratios = eval(Path(folder, "ratios").read_text())
    return [
        ("two processes to DistributedDataParallel, convolutional net of 1 million", ratios["conv"], 1.02),
        ("two processes to DistributedDataParallel, MLP of 4 million", ratios["mlp"], 1.02),
    ]


if __name__ == "__main__":
    print(run())
