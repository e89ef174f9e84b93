"""What bitwise mode costs: to exact mode at the same micro-batch, one thread, and what of it adding up alone takes."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.timing import one_thread, ratio
from wholebatch import Step, models

ROUNDS = 7
MICRO_BATCH, BATCH = 32, 64


def _work(bitwise: bool) -> object:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    model = models.build("resnet18", seed=0, num_classes=10, in_channels=3, norm="batch")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=MICRO_BATCH, bitwise=bitwise)
    return lambda: step((images, labels))


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for a ResNet-18 on 32 × 32 with batch norm."""
    with one_thread():
        cost = ratio(_work(True), _work(False), ROUNDS)  # type: ignore[arg-type]
    return [(f"bitwise, ResNet-18 on 32 × 32, {BATCH} in {MICRO_BATCH}s, to exact mode", cost, 1.3)]
