"""What the estimate of the gradient noise scale costs of a step: with it and without, in turn."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from wholebatch import models
from wholebatch.step import Step

ROUNDS = 60


def main() -> None:
    """Print a line per model: milliseconds per step without, with, and the median of their ratio."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = torch.randn(256, 1, 8, 8), torch.randint(0, 10, (256,))
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 10))
    small_cnn = models.build("small_cnn", num_classes=10, in_channels=1, image_size=8)
    for name, model in {"small_cnn": small_cnn, "mlp 1024": wide}.items():
        for batch, micro in ((256, 64), (64, 16), (16, 8)):
            without, with_it, ratio = compare(model, (images[:batch], labels[:batch]), micro)
            print(f"{name:<10} batch {batch:>3} in {micro:>2}: {without:7.3f} ms, {with_it:7.3f} ms, {ratio:.3f} times")


def compare(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], micro: int) -> tuple[float, float, float]:
    """Return milliseconds of thread time without and with the estimate, and the median ratio of neighbours."""
    steps = [
        Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.CrossEntropyLoss(), micro_batch=micro)
        for _ in range(2)
    ]
    steps[0].measures_noise = False
    times: tuple[list[float], list[float]] = ([], [])
    for place in range(ROUNDS + 5):
        for which in (0, 1) if place % 2 else (1, 0):
            begun = time.thread_time()
            steps[which](batch)
            if place >= 5:
                times[which].append(1e3 * (time.thread_time() - begun))
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return statistics.median(times[0]), statistics.median(times[1]), ratio


if __name__ == "__main__":
    main()
