"""What sending less sends, when it pays, and what it costs in accuracy; every table in docs/less-communication.md.

    python -m benchmarks.less_communication link        # over links of limited speed; needs root on Linux
    python -m benchmarks.less_communication arithmetic  # bytes counted, times computed; for a machine that is busy
    python -m benchmarks.less_communication accuracy digits [seeds [part of a way's name]]
    python -m benchmarks.less_communication accuracy cifar10    # WHOLEBATCH_DATA says where the data set is
    python -m benchmarks.less_communication late digits [seeds]  # late gradients, without momentum

``link`` makes two network namespaces with one virtual cable between them, limits both ends of it with ``tc`` (a token
bucket), and starts one process in each. Bytes are what the kernel counted at the first one's end, sent and received,
everything included: gradients, totals, headers of TCP.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

import wholebatch as wb

Parallel = Any
H = 8
PLAIN, LATE = "plain all-reduce", "gradients 1 step late"
GENTLE = {"diloco": {"lr": 0.4, "momentum": 0.6}}  # an outer step as long as the mean's, in the long run
LINKS = {"10 Mb/s": "10mbit", "100 Mb/s": "100mbit", "1 Gb/s": "1gbit", "no limit": ""}


def modes(workers: int) -> dict[str, Parallel]:
    """Each way by name."""
    some: dict[str, dict[str, Any]] = {
        "workers alone": {},
        "bf16": {"compress": "bf16"},
        "fp16": {"compress": "fp16"},
        "PowerSGD, rank 4": {"compress": {"powersgd": 4}},
        f"{H} local steps": {"local_steps": H},
        f"DiLoCo, {H} local steps": {"local_steps": H, "outer": "diloco"},
        f"DiLoCo, {H} local steps, lr 0.4, momentum 0.6": {"local_steps": H, "outer": GENTLE},
        f"{H} local steps, one round late": {"local_steps": H, "overlap": True},
        LATE: {"stale": 1},
    }
    return {PLAIN: "flat", **{name: {"workers": workers, **ways} for name, ways in some.items()}}


def begun_later(workers: int, start: int) -> dict[str, Parallel]:
    """Local steps that begin when ``start`` steps were made together (post-local SGD)."""
    some: dict[str, dict[str, Any]] = {
        f"{H} local steps": {"local_steps": H},
        f"DiLoCo, {H} local steps": {"local_steps": H, "outer": "diloco"},
        f"{H} local steps, one round late": {"local_steps": H, "overlap": True},
        f"{H // 2} local steps, one round late": {"local_steps": H // 2, "overlap": True},
    }
    return {
        f"{name}, after {start} together": {"workers": workers, "start": start, **ways} for name, ways in some.items()
    }


# bytes and times over a link --------------------------------------------------------------------------------


def dense() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """An MLP of half a million parameters (2.1 MB), and one process's 64 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 704), nn.ReLU(), nn.Linear(704, 10))
    return model, (torch.randn(64, 256), torch.randint(0, 10, (64,)))


def _stepping(parallel: Parallel, rank: int, size: int) -> Callable[[], object]:
    model, (x, y) = dense()
    step = wb.parallel.step_for(parallel)(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        nn.CrossEntropyLoss(),
        engine=wb.parallel.engine(parallel),
    )
    if step.workers is None:
        return lambda: step((x, y), position=rank * len(y))
    place = {"edges": (0, len(y)), "whole": size * len(y)}
    return lambda: step(wb.MicroBatches([(x, y)], len(y), **place), position=rank * len(y))


def _counted(interface: str) -> int:
    """Bytes that the kernel counted at this interface, received and sent."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            values = numbers.split()
            return int(values[0]) + int(values[8])
    raise OSError(f"there is no interface {interface}")


def _one_process(rank: int, size: int, store: str, interface: str, budget: float) -> None:
    """Print, for each mode, bytes and seconds per step."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    meet = torch.zeros(1)
    for name, parallel in modes(size).items():
        step = _stepping(parallel, rank, size)
        for _ in range(H):
            step()
        distributed.all_reduce(meet)
        begun, before, rounds = time.perf_counter(), _counted(interface), 0
        go_on = torch.ones(1)
        while go_on.item():  # whole rounds of local steps
            for _ in range(H):
                step()
            rounds += 1
            go_on.fill_(float(time.perf_counter() - begun < budget))
            distributed.broadcast(go_on, 0)
        steps, seconds = H * rounds, time.perf_counter() - begun
        if rank == 0:
            print(f"{name}|{(_counted(interface) - before) / 2 / steps}|{seconds / steps}", flush=True)
        distributed.barrier()
    time.sleep(0.2)
    distributed.destroy_process_group()


def _over_link(rate: str, budget: float) -> dict[str, tuple[float, float]]:
    """Bytes that each of two processes sends and seconds, per step, by mode."""
    spaces = [f"wb{os.getpid()}{end}" for end in "ab"]
    ends = [f"wb{os.getpid() % 100000}{end}" for end in "ab"]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    def inside(end: int, *words: str) -> list[str]:
        return ["ip", "netns", "exec", spaces[end], *words]

    try:
        for space in spaces:
            ip("netns", "add", space)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end in (0, 1):
            ip("link", "set", ends[end], "netns", spaces[end])
            subprocess.run(inside(end, "ip", "address", "add", f"10.77.0.{end + 1}/24", "dev", ends[end]), check=True)
            subprocess.run(inside(end, "ip", "link", "set", ends[end], "up"), check=True)
            subprocess.run(inside(end, "ip", "link", "set", "lo", "up"), check=True)
            if rate:
                words = ["root", "tbf", "rate", rate, "burst", "256kb", "latency", "200ms"]
                subprocess.run(inside(end, "tc", "qdisc", "add", "dev", ends[end], *words), check=True)
        with tempfile.TemporaryDirectory() as folder:
            started = []
            for end in (0, 1):
                words = ["_process", str(end), "2", f"{folder}/store", ends[end], str(budget)]
                command = inside(end, sys.executable, "-m", "benchmarks.less_communication", *words)
                own = {**os.environ, "GLOO_SOCKET_IFNAME": ends[end], "OMP_NUM_THREADS": "1"}
                started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own))
            first, _ = [process.communicate(timeout=1800)[0] for process in started]
            lines = first.splitlines()
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)
    rows = [line.split("|") for line in lines if line.count("|") == 2]
    return {name: (float(sent), float(seconds)) for name, sent, seconds in rows}


def link() -> None:
    """Print bytes per step, and a table of link speed against time per step."""
    found = {name: _over_link(rate, 20.0 if rate == "10mbit" else 3.0) for name, rate in LINKS.items()}
    last = found["no limit"]
    plain = last[PLAIN][0]
    print(f"\n| way | kB sent per process and step | of plain | ms per step: {' | '.join(LINKS)} |")
    print("|---|---|---|" + "---|" * len(LINKS))
    for name, (sent, _) in last.items():
        times = " | ".join(f"{1000 * found[speed][name][1]:.1f}" for speed in LINKS)
        print(f"| {name} | {sent / 1000:,.0f} | {sent / plain:.3f} | {times} |")


def _computing(parallel: Parallel) -> float:
    """Seconds of this thread alone per step, by one process with one worker: all but the sending."""
    step, begun = _stepping(parallel, 0, 1), 0.0
    for number in range(9 * H):
        if number == H:
            begun = time.thread_time()
        step()
    return (time.thread_time() - begun) / (8 * H)


def arithmetic() -> None:
    """Print seconds of computing, and with them what a step takes over links of several speeds."""
    torch.set_num_threads(1)
    speeds = {"10 Mb/s": 1e7, "100 Mb/s": 1e8, "1 Gb/s": 1e9, "10 Gb/s": 1e10}
    sent = {name: row[0] for name, row in _over_link("", 0.5).items()}
    print(f"| way | ms of computing | {' | '.join(speeds)} |\n|---|---|" + "---|" * len(speeds))
    for name, parallel in modes(1).items():
        own = 1000 * _computing(parallel)
        under_way = [8000 * sent[name] / speed for speed in speeds.values()]
        late = "round late" in name
        times = " | ".join(f"{max(own, t) if late else own + t:.1f}" for t in under_way)
        print(f"| {name} | {own:.1f} | {times} |", flush=True)


# accuracy ---------------------------------------------------------------------------------------------------

WORKERS = 4
TOGETHER = {"digits": 100, "cifar10": 650}  # a third of the steps


@dataclass(frozen=True)
class Training:
    """How it is trained: by AdamW, with this momentum."""

    lr: float
    epochs: int
    momentum: float = 0.9


USUAL = {"digits": Training(5e-3, 25), "cifar10": Training(3e-3, 5)}
WITHOUT_MOMENTUM = {"digits": Training(5e-3, 25, 0.0), "cifar10": Training(5e-4, 10, 0.0)}


def _digits(parallel: Parallel, seed: int, how: Training) -> float:
    model = wb.models.build("small_cnn", seed=seed)
    train, test = wb.data.digits("train"), wb.data.digits("test")
    return _trained(model, train, test, parallel, seed, how)


def _cifar10(parallel: Parallel, seed: int, how: Training) -> float:
    """All 50,000 images; five epochs are 1,955 steps."""
    options = {"in_channels": 3, "image_size": 32, "width": 8}
    model = wb.models.build("small_cnn", seed=seed, **options)
    sets = [wb.data.cifar10(split) for split in ("train", "test")]
    arrays = []
    for one in sets:
        x, y = one.take(torch.arange(len(one)))
        arrays.append((x.float() / 128 - 1 if x.dtype is torch.uint8 else x, y))
    return _trained(model, arrays[0], arrays[1], parallel, seed, how)


def _trained(model: nn.Module, train: Any, test: Any, parallel: Parallel, seed: int, how: Training) -> float:
    lr, betas = how.lr, (how.momentum, 0.999)
    loader = wb.data.BatchLoader(train, 128, seed=seed)
    wb.train(
        model,
        loader,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=0.05),
        epochs=how.epochs,
        schedule=wb.CosineScheduler(how.epochs * len(loader), base_lr=lr, warmup_steps=10),
        seed=seed,
        parallel=parallel,
        display=False,
    )
    return 100 * wb.evaluate(model, test)["accuracy"]


def accuracy(data: str, seeds: int, only: str) -> None:
    """Print the accuracy of each way, the mean of some seeds, and its difference to plain."""
    ways = {**modes(WORKERS), **begun_later(WORKERS, TOGETHER[data])}
    wanted = {name: parallel for name, parallel in ways.items() if only in name or name.startswith("plain")}
    _table(data, seeds, wanted, USUAL[data])


def late(data: str, seeds: int) -> None:
    """Print the accuracy of late gradients beside plain, both without momentum."""
    _table(data, seeds, {name: modes(WORKERS)[name] for name in (PLAIN, LATE)}, WITHOUT_MOMENTUM[data])


def _table(data: str, seeds: int, wanted: dict[str, Parallel], how: Training) -> None:
    torch.set_num_threads(1)
    run = {"digits": _digits, "cifar10": _cifar10}[data]
    found: dict[str, list[float]] = {name: [] for name in wanted}
    for seed in range(seeds):
        for name, parallel in wanted.items():
            found[name].append(run(parallel, seed, how))
            print(f"seed {seed}, {name}: {found[name][-1]:.2f}", file=sys.stderr, flush=True)
    plain = statistics.mean(found[PLAIN])
    print(f"| way | accuracy on {data}, mean of {seeds} | each | difference |\n|---|---|---|---|")
    for name, values in found.items():
        each = ", ".join(f"{value:.2f}" for value in values)
        print(f"| {name} | {statistics.mean(values):.2f} | {each} | {statistics.mean(values) - plain:+.2f} |")


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["link"]
    if what == "_process":
        _one_process(int(rest[0]), int(rest[1]), rest[2], rest[3], float(rest[4]))
    elif what == "arithmetic":
        arithmetic()
    elif what == "link":
        link()
    elif what == "accuracy":
        accuracy(rest[0], int(rest[1]) if len(rest) > 1 else 3, rest[2] if len(rest) > 2 else "")
    elif what == "late":
        late(rest[0], int(rest[1]) if len(rest) > 1 else 3)
    else:
        sys.exit(__doc__)
