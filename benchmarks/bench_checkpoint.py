"""What saving costs: the time a step is held, as a fraction of a step, synchronously and in the background.

The model is ResNet-18 for 32 x 32 images (11 million parameters, 90 MB with momentum), a step one of 64 samples on
one thread. Here wall time is measured, not the thread's own: the disk is what one waits for. Steps without a save,
with a save in the background and with a synchronous one are interleaved; the fraction is the median difference
to a step without. The step after one that saved in the background is measured too, since it shares the processor.
"""

from __future__ import annotations

import statistics
import tempfile
import time

import torch
from torch import Tensor, nn

from benchmarks.timing import one_thread
from wholebatch.checkpoint import Background, Fence, Store

ROUNDS = 7
SAMPLES = 64


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for _ in range(2)])
        self.around = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(self.norms[0](self.first(x)).relu()))
        return (y + self.around(x)).relu()


def resnet18() -> nn.Module:
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in zip(widths, widths[1:], strict=False)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def fractions() -> tuple[float, float]:
    """Return by which fraction of a step a synchronous save, and one in the background, holds the training."""
    torch.manual_seed(0)
    model, criterion = resnet18(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(SAMPLES, 3, 32, 32), torch.randint(10, (SAMPLES,))

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()

    def seconds(*work: object) -> float:
        begin = time.perf_counter()
        for part in work:
            part()  # type: ignore[operator]
        return time.perf_counter() - begin

    step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with tempfile.TemporaryDirectory() as run, Fence.take(run) as fence:
        store = Store(run, keep_last=1, fence=fence)
        background = Background(store)
        numbers = iter(range(1, 1000))
        times: list[tuple[float, float, float]] = []
        for _ in range(ROUNDS):
            bare = seconds(step, step)
            beside = seconds(step, lambda: background.save(state, step=next(numbers)), step)
            background.wait()
            held = seconds(step, lambda: store.save(state, step=next(numbers)), step)
            times.append((bare, beside, held))
        background.close()
    one = statistics.median(bare for bare, _, _ in times) / 2
    beside = statistics.median(b - a for a, b, _ in times) / one
    held = statistics.median(c - a for a, _, c in times) / one
    return held, beside


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for each claim."""
    with one_thread():
        held, beside = fractions()
    return [
        ("a synchronous save of ResNet-18 with momentum (90 MB), in steps of 64 samples", held, 1.0),
        ("the same in the background: what it adds to two steps, in steps", beside, 0.35),
    ]
