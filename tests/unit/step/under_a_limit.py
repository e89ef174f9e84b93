"""A step in a process whose address space the operating system limits: prints what the step did.

Arguments: the micro-batch (a number, or auto), and what is wrong ("nothing", or "error": a plain RuntimeError).
"""

from __future__ import annotations

import resource
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import wholebatch as wb

ROOM = 120 << 20  # the step on all samples at once takes more


class Broken(nn.Module):
    """Fails as anything may, on tensors that have contents."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(x, FakeTensor):
            raise RuntimeError("something else is wrong")
        return x


def main(micro: str, wrong: str) -> None:
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 16, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)
    )
    x, y = torch.randn(64, 3, 96, 96), torch.arange(64) % 4
    model(x[:2]).sum().backward()  # threads and libraries have their memory before the limit is set
    if wrong == "error":
        model.append(Broken())
    step = wb.Step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        nn.CrossEntropyLoss(),
        micro_batch=micro if micro == "auto" else int(micro),
    )
    wb.plan(model, (x[:4], y[:4])) if wrong == "nothing" else None
    used = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmSize" in line).split()[1])
    resource.setrlimit(
        resource.RLIMIT_AS, (used * 1024 + ROOM * (20 if wrong == "error" else 1), resource.RLIM_INFINITY)
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        report = step((x, y))
    short = [w for w in said if w.category is wb.OutOfMemoryWarning]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    whole = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.CrossEntropyLoss(), micro_batch=5)
    print(report.micro_batches, len(short), report.samples, whole((x, y)).micro_batches)


if __name__ == "__main__":
    main(*sys.argv[1:])
