"""Two processes: our step with each engine against a bare DistributedDataParallel loop, and the counts' exchange."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import wholebatch as wb
from wholebatch.core.processes import current
from wholebatch.step.over_processes import Totals, add_totals

PROCESSES = 2
ROUNDS = 24
STEPS = 4
EXCHANGES = 200
WARM = 33  # steps: the noise scale is measured in every one of the first 12, in one of sixteen of those after them


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


Make = Callable[[], tuple[nn.Module, tuple[Tensor, Tensor]]]
MODELS: dict[str, Make] = {
    "convolutional net of 1 million": convolutional,
    "MLP of 4 million": dense,
}
ENGINES = ("flat", "ddp")


def _ours(make: Make, engine: str, rank: int) -> Callable[[], object]:
    torch.manual_seed(0)
    model, (x, y) = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = wb.Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=len(y), engine=wb.parallel.engine(engine))
    return lambda: step((x, y), position=rank * len(y))


def _bare(make: Make) -> Callable[[], object]:
    torch.manual_seed(0)
    model, (x, y) = make()
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()

    return step


def _times(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds per step of each, interleaved, in turns of who begins, when all are warm; the first round is left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        for _ in range(1 if name == "bare" else WARM):
            call()
    names = list(calls)
    for turn in range(ROUNDS + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            call = calls[name]
            distributed.barrier()
            begun = time.perf_counter()
            for _ in range(STEPS):
                call()
            distributed.barrier()
            times[name].append((time.perf_counter() - begun) / STEPS)
    return {name: values[1:] for name, values in times.items()}


def _exchange() -> float:
    """Seconds of one exchange of totals and the flags of 100 parameters: what the counts cost per step."""
    processes, kinds, seconds = current(), ["dense"] * 100, []
    for _ in range(EXCHANGES):
        begun = time.perf_counter()
        add_totals(processes, Totals(1.0, 2.0, 3, 4), kinds, None)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _measure(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    ratios: dict[str, dict[str, float]] = {}
    for name, make in MODELS.items():
        times = _times({**{engine: _ours(make, engine, rank) for engine in ENGINES}, "bare": _bare(make)})
        exchange = _exchange()
        bare = statistics.median(times["bare"])
        ratios[name] = {engine: statistics.median(times[engine]) / bare for engine in ENGINES}
        ratios[name]["exchange"] = exchange / bare
    if rank == 0:
        Path(folder, "ratios").write_text(repr(ratios))
    time.sleep(0.05)
    distributed.destroy_process_group()


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio of times, bar): 1.02 of the time is 0.98 of the samples per second."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_measure, (folder,), nprocs=PROCESSES)
        ratios = eval(Path(folder, "ratios").read_text())
    rows: list[tuple[str, float, float]] = []
    for name in MODELS:
        # the bar is the default engine's, which is the one that this file shows faster
        rows.append((f"two processes to DistributedDataParallel, {name}", ratios[name]["flat"], 1.02))
        rows.append((f"the same with parallel='ddp', {name}", ratios[name]["ddp"], math.inf))
        rows.append((f"the exchange of counts, per step of {name}", ratios[name]["exchange"], math.inf))
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
