"""Mean and standard deviation of a data set's images, per channel, computed once and kept."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data import cache
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.imageset import ImageDataset

MOST = 10_000  # images that are read; more change the third digit of nothing
_AT_ONCE = 2048


def statistics(dataset: Any) -> tuple[list[float], list[float]]:
    """Return (means, standard deviations) of the images' channels, as shares of 255.

    Over all pixels of all images, or of 10,000 of them, evenly spaced, where there are more. The sums are of whole
    numbers, so they are exact, and every process finds the same. The result is kept in the cache folder where the data
    set has a fingerprint.

    Args:
        dataset: map-style, its samples' first entry the image, uint8 C×H×W.

    Raises:
        DataError: the images are not uint8 C×H×W, or are all of one colour in a channel.

    >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    >>> statistics(ArrayDataset(images, [0, 1]))
    ([0.5], [0.5])
    """
    fingerprint = dataset.fingerprint() if isinstance(dataset, ImageDataset) else None
    options = (len(dataset), getattr(dataset, "size", None))
    key = None if fingerprint is None else f"{cache.key('statistics', fingerprint, *options)}.json"
    known = None if key is None else _read(key)
    if known is not None:
        return known
    found = _compute(dataset)
    if key is not None:
        cache.store_bytes(key, json.dumps(found).encode())
    return found


def _read(key: str) -> tuple[list[float], list[float]] | None:
    try:
        mean, std = json.loads(cache.read_bytes(key) or b"")
        return [float(value) for value in mean], [float(value) for value in std]
    except (ValueError, TypeError):
        return None


def _compute(dataset: Any) -> tuple[list[float], list[float]]:
    stride = -(-len(dataset) // MOST)
    total = squares = torch.zeros((), dtype=torch.int64)
    pixels = 0
    for images in _images(dataset, range(0, len(dataset), stride)):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(f"statistics are of images, uint8 C×H×W; got {images.dtype} {tuple(images.shape[1:])}")
        counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
        if pixels and counts.shape[0] != total.shape[0]:
            raise DataError(f"the images have different numbers of channels: {total.shape[0]} and {counts.shape[0]}")
        values = torch.arange(256)
        total, squares = total + counts @ values, squares + counts @ values**2  # int64
        pixels += images[:, 0].numel()
    mean = total.double() / pixels
    std = (squares.double() / pixels - mean**2).clamp(min=0).sqrt()
    if not (std > 0).all():
        raise DataError("a channel of the images has one value everywhere, so it cannot be normalised")
    return (mean / 255).tolist(), (std / 255).tolist()


def _images(dataset: Any, indices: range) -> Any:
    """The images in pieces, (n, C, H, W); one by one where they may be of different sizes."""
    if isinstance(dataset, ArrayDataset):
        chosen = torch.tensor(indices)
        yield from (dataset.inputs[part] for part in chosen.split(_AT_ONCE))
        return
    for index in indices:
        image = dataset[index][0]
        if not isinstance(image, Tensor):
            raise DataError(f"statistics are of images, uint8 C×H×W; got a {type(image).__name__}")
        yield image[None]
