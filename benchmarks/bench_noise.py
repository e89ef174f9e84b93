"""What the estimate of the gradient noise scale costs of a step: two norms, no backward and no copy."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.timing import one_thread, ratio
from wholebatch import Step, models
from wholebatch.sums import NoiseScale

ROUNDS = 41


class _Never(NoiseScale):
    due = False  # type: ignore[assignment]


def _cost(name: str, batch: int, micro_batch: int, steps: int, **options: int) -> float:
    torch.manual_seed(0)
    side = options["image_size"]
    images, labels = torch.randn(batch, options["in_channels"], side, side), torch.randint(0, 10, (batch,))
    works = []
    for measures in (True, False):
        model = models.build(name, seed=0, num_classes=10, **options)
        step = Step(model, torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss(), micro_batch=micro_batch)
        if not measures:
            step._accumulator.noise = _Never()

        def work(step: Step = step) -> None:
            for _ in range(steps):
                step((images, labels))

        for _ in range(40):  # beyond those at the beginning, which are all measured
            step((images[:2], labels[:2]))
        works.append(work)
    return ratio(works[0], works[1], ROUNDS)


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for small models, where a step's own work hides least."""
    digits, mnist = {"image_size": 8, "in_channels": 1}, {"image_size": 28, "in_channels": 1}
    cases = [("small_cnn", 128, 32, 8, digits), ("small_cnn", 128, 64, 8, digits), ("lenet", 128, 32, 4, mnist)]
    with one_thread():
        return [
            (f"noise scale, {name}, {batch} in {micro}s, to none", _cost(name, batch, micro, steps, **sizes), 1.02)
            for name, batch, micro, steps, sizes in cases
        ]
