"""Mean and standard deviation of a data set's images, from sums of integers: exact, whatever the order."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data import cache
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.imageset import ImageDataset

MOST = 10_000  # images that are read from files; more change the third digit of nothing
_AT_ONCE = 1 << 24  # pixels that are summed at once


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every channel, over all pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(dataset: Any, *, scale: float = 1 / 255, field: Any = 0) -> Statistics:
    """Return mean and standard deviation of every channel of all images, bytes times ``scale``.

    Sums and sums of squares are integers, divided once; every machine finds the same two numbers. A channel that is
    constant has the deviation 1, so that it can be divided by. Of a data set whose images are read from files 10,000
    are looked at, evenly spaced, where there are more; the result is kept in the cache folder.

    Args:
        dataset: an :class:`ArrayDataset`, or a data set whose samples hold an image (channels, height, width).
        scale: what one step of the stored values is worth.
        field: place or key of the image in a sample.

    Raises:
        DataError: images that are not uint8, or of several numbers of channels.

    >>> images = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).view(2, 1, 1, 2)
    >>> channel_statistics(ArrayDataset(images, [0, 1]))
    Statistics(mean=(0.5,), std=(0.5,))
    """
    fingerprint = dataset.fingerprint() if isinstance(dataset, ImageDataset) else None
    if fingerprint is None:
        return _computed(dataset, scale, field)
    options = (len(dataset), getattr(dataset, "size", None), scale)
    key = f"{cache.key('statistics', fingerprint, *options)}.json"
    try:
        mean, std = json.loads(cache.read_bytes(key) or b"")
        return Statistics(tuple(map(float, mean)), tuple(map(float, std)))
    except (ValueError, TypeError):  # there is none, or a damaged one
        found = _computed(dataset, scale, field)
        cache.store_bytes(key, json.dumps([found.mean, found.std]).encode())
        return found


def _computed(dataset: Any, scale: float, field: Any) -> Statistics:
    total: list[int] | None = None
    squares: list[int] = []
    count = 0
    for images in _pieces(dataset, field):
        if images.dtype != torch.uint8 or images.ndim != 4:
            kind = f"{str(images.dtype).removeprefix('torch.')}{tuple(images.shape[1:])}"
            raise DataError(
                f"statistics are computed over images of uint8 (channels, height, width), got {kind}; give them as "
                "mean and std"
            )
        sums = images.sum((0, 2, 3), dtype=torch.int64).tolist()
        of_squares = images.to(torch.int32).square_().sum((0, 2, 3), dtype=torch.int64).tolist()
        if total is None:
            total, squares = [0] * len(sums), [0] * len(sums)
        if len(sums) != len(total):
            raise DataError(f"statistics need images of one number of channels, got {len(total)} and {len(sums)}")
        total = [a + b for a, b in zip(total, sums, strict=True)]
        squares = [a + b for a, b in zip(squares, of_squares, strict=True)]
        count += images.shape[0] * images.shape[2] * images.shape[3]
    if total is None or not count:
        raise DataError("statistics need at least one image")
    deviations = [_deviation(a, b, count) * scale or 1.0 for a, b in zip(total, squares, strict=True)]
    return Statistics(tuple(float(Fraction(a, count)) * scale for a in total), tuple(deviations))


def _deviation(total: int, squares: int, count: int) -> float:
    return math.sqrt(Fraction(squares * count - total * total, count * count))


def _pieces(dataset: Any, field: Any) -> Any:
    """Batches of images."""
    if isinstance(dataset, ArrayDataset):
        images = dataset.batch if isinstance(dataset.batch, Tensor) else dataset.batch[field]
        size = max(1, _AT_ONCE // max(1, images[0].numel()))
        yield from images.split(size)
        return
    for number in range(0, len(dataset), -(-len(dataset) // MOST)):
        sample = dataset[number]
        image = sample if isinstance(sample, Tensor) else sample[field]
        yield torch.as_tensor(image).unsqueeze(0)
