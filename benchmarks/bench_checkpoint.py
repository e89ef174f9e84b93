"""What saving costs: the time that training is held, as a fraction of a step, synchronously and in the background.

The model is ResNet-18 for 32 x 32 images (11 million parameters, 90 MB with momentum), a step one of 32 samples on
one thread; on a faster device the step is shorter and the fractions larger. Wall time is measured, not the thread's
own, since the disk is what one waits for; the three kinds are interleaved and medians compared.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.timing import one_thread
from wholebatch.checkpoint import Background, Fence, Store

ROUNDS = 7
SAMPLES = 32


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(2)])
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        return (y + self.around(x)).relu()


def resnet18() -> nn.Module:
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def fractions() -> tuple[float, float, float]:
    """Return, in steps: a synchronous save, the call that begins one in the background, the step during it."""
    torch.manual_seed(0)
    model, criterion = resnet18(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(SAMPLES, 3, 32, 32), torch.randint(10, (SAMPLES,))

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with tempfile.TemporaryDirectory() as run, Fence.take(run) as fence:
        store = Store(run, keep_last=1, fence=fence)
        times = []
        with Background(store) as background:
            for number in range(ROUNDS + 1):
                bare = seconds(step)
                call = seconds(partial(background.save, state, step=2 * number))
                during = seconds(step)
                background.wait()
                times.append((bare, seconds(partial(store.save, state, step=2 * number + 1)), call, during))
    bare, held, call, during = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return held / bare, call / bare, during / bare


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for each claim."""
    with one_thread():
        held, call, during = fractions()
    return [
        (f"a synchronous save of ResNet-18 with momentum (90 MB) to a step of {SAMPLES} samples", held, 1.0),
        ("the call that begins it in the background, to the same step", call, 0.15),
        ("the step during which the background saves, to one alone", during, 1.25),
    ]
