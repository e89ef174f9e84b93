"""What augmentation costs: crop, flip and normalise of 32 x 32 colour images, against the same sample by sample.

Bytes in, float32 out. Both sides draw and compute the same; the one by hand is what a data set's ``__getitem__`` with
a careful chain of tensor operations and a collation cost. 30,000 images in a second of one core are more than the same
rate on two.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import one_thread, ratio, seconds
from wholebatch import data

MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
SAMPLES = 512
ROUNDS = 15
RATE = 30_000  # images
CHAIN = data.Compose(data.RandomCrop(padding=4), data.HorizontalFlip(), data.Normalize(MEAN, STD))
ALL = data.Compose(
    data.RandomResizedCrop(),
    data.HorizontalFlip(),
    data.ColorJitter(0.4, 0.4, 0.4, 0.1),
    data.Cutout(8),
    data.Normalize(MEAN, STD),
)


def _images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (SAMPLES, 3, 32, 32), dtype=torch.uint8, generator=generator)


def one_by_one(images: Tensor) -> Tensor:
    """The same kind of augmentation, an image at a time."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    new = []
    for image in images:
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = F.pad(image, (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        new.append((image / 255).sub_(mean).div_(std))
    return torch.stack(new)


def seconds_for(count: int, chain: data.Compose, images: Tensor) -> float:
    """Time of one thread for ``count`` images, by the median round."""
    numbers = torch.arange(len(images))
    chain(images, seed=0, epoch=0, indices=numbers)
    times = [seconds(lambda: chain(images, seed=0, epoch=1, indices=numbers)) for _ in range(ROUNDS)]
    return statistics.median(times) * count / len(images)


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for each claim."""
    images, numbers = _images(), torch.arange(SAMPLES)
    with one_thread():
        to_one_by_one = ratio(
            lambda: CHAIN(images, seed=0, epoch=0, indices=numbers), lambda: one_by_one(images), ROUNDS
        )
        return [
            ("crop, flip, normalise at 32 x 32, to the same image by image", to_one_by_one, 0.2),
            (f"seconds of one core for {RATE:,} such images", seconds_for(RATE, CHAIN, images), 1.0),
            ("the same for resized crop, flip, colours, cutout, normalise", seconds_for(RATE, ALL, images), 6.0),
        ]
