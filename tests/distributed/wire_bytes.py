"""Bytes that the kernel counts at the loopback of a network namespace of its own: ``python wire_bytes.py PROCESSES``.

It is started again under ``unshare --net``, so that nobody else's bytes are among them.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 8
INSIDE = "WHOLEBATCH_TEST_INSIDE"


def modes(workers: int) -> dict[str, Any]:
    local = {"workers": workers, "local_steps": 4}
    return {
        "plain": "flat",
        "workers": {"workers": workers},
        "bf16": {"workers": workers, "compress": "bf16"},
        "fp16": {"workers": workers, "compress": "fp16"},
        "powersgd": {"workers": workers, "compress": {"powersgd": 2}},
        "local": local,
        "diloco": {**local, "outer": "diloco"},
        "late": {**local, "overlap": True},
        "stale": {"workers": workers, "stale": 1},
    }


def counted() -> int:
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def process(rank: int, size: int, folder: str) -> None:
    import torch
    from torch import distributed, nn

    import wholebatch as wb

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    x, y = torch.randn(4, 300), torch.randint(0, 9, (4,))
    found = {}
    for name, parallel in modes(size).items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 200), nn.ReLU(), nn.Linear(200, 9))
        step = wb.parallel.step_for(parallel)(
            model,
            torch.optim.SGD(model.parameters(), lr=0.01),
            nn.CrossEntropyLoss(),
            engine=wb.parallel.engine(parallel),
        )
        window: Any = wb.MicroBatches([(x, y)], 4, edges=(0, 4), whole=4 * size) if step.workers else (x, y)
        distributed.barrier()
        before = counted()
        distributed.barrier()
        for _ in range(STEPS):
            step(window, position=4 * rank)
        distributed.barrier()
        found[name] = (counted() - before) / STEPS / size
        found["parameters"] = 4.0 * sum(p.numel() for p in model.parameters())
        distributed.barrier()
    if rank == 0:
        Path(folder, "found").write_text(json.dumps(found))
    time.sleep(0.1)
    distributed.destroy_process_group()


def main(size: int) -> None:
    if INSIDE not in os.environ:
        command = ["unshare", "--net", sys.executable, __file__, str(size)]
        sys.exit(subprocess.run(command, env={**os.environ, INSIDE: "1"}).returncode)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for name in ("torch._dynamo", "wholebatch.api"):  # once, and not in every process; optimizers take the first
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        started = [context.Process(target=process, args=(rank, size, folder)) for rank in range(size)]
        for one in started:
            one.start()
        for one in started:
            one.join(60)
            one.kill()
        print(Path(folder, "found").read_text())


if __name__ == "__main__":
    main(int(sys.argv[1]))
