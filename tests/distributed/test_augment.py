"""Augmentation and mixing on several processes are those of one: the whole batch's bits, and the same training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import wholebatch as wb
from wholebatch import data

SAMPLES, CLASSES = 29, 4


def pieces() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (SAMPLES, 3, 12, 12), dtype=torch.uint8, generator=generator), torch.arange(
        SAMPLES
    ) % CLASSES


def loader(kind: str) -> data.BatchLoader:
    augment = data.Compose(
        data.RandomResizedCrop(),
        data.RandomCrop(padding=2),
        data.HorizontalFlip(),
        data.PerSample(lambda image: image + (torch.rand(1) * 3).byte()),
        data.ColorJitter(0.4, 0.4, 0.4, 0.1),
        data.Cutout(4),
        data.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.2)),
    )
    mix = {"none": None, "mixup": data.MixUp(CLASSES), "both": data.Mix(CLASSES, 0.5, 1.0)}[kind]
    return data.BatchLoader(pieces(), 8, seed=3, transform=augment, mix=mix)


def augmented(rank: int, size: int, kind: str, micro_batch: int | None) -> list[list[tuple[int, Any]]]:
    """(position in the whole batch, rows) of this process, batch by batch, of two epochs."""
    batches, own = [], loader(kind)
    for _ in range(2):
        for window in own.windows(micro_batch):
            batches.append([(window.position, [torch.cat(parts) for parts in zip(*window, strict=True)])])
    return batches


@pytest.mark.parametrize(("kind", "size", "micro_batch"), [("none", 2, 3), ("mixup", 3, 1), ("both", 2, 2)])
def test_the_bits_are_those_of_one_process(world: Any, kind: str, size: int, micro_batch: int) -> None:
    processes = world(size, augmented, kind, micro_batch)
    for number, ((_, whole),) in enumerate(augmented(0, 1, kind, None)):
        parts = [process[number][0] for process in processes]
        assert [position for position, _ in parts] == sorted(position for position, _ in parts)
        for place in (0, 1):
            together = torch.cat([rows[place] for _, rows in parts if rows])
            assert torch.equal(together, whole[place])


def trained(rank: int, size: int, kind: str) -> torch.Tensor:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()
    own = loader(kind)
    own.transform = data.Compose(own.transform, lambda batch, **place: (batch[0].double(), *batch[1:]))
    wb.train(
        model,
        own,
        loss=nn.CrossEntropyLoss(label_smoothing=0.1),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        epochs=2,
        micro_batch=2,
        display=False,
    )
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def test_training_is_that_of_one_process(world: Any) -> None:
    """Mixed with partners that live on other processes."""
    whole = trained(0, 1, "both")
    for weights in world(3, trained, "both"):
        assert (weights - whole).abs().max() < 1e-12
    assert (whole - trained(0, 1, "none")).norm() > 1e-3
