"""From an image of any size to a square one: the smaller side resized, then a part cut out."""

from __future__ import annotations

import numpy as np
from PIL import Image

from wholebatch.core.errors import DataError

_LARGEST = 1 << 27  # pixels of a resized image: one of 256 x 500,000 is no photograph
Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]


def view(image: Image.Image, size: int, crop: int, place: tuple[float, float] | None, name: str) -> Pixels:
    """Return the part of ``image`` that a model sees, float32, (crop, crop, 3), from -1 to 1.

    Resized by Pillow's bicubic filter, which averages over all pixels where it makes smaller (antialias); uint8 until
    the end, then ``value / 127.5 - 1``.

    Args:
        image: RGB.
        size: the smaller side after resizing, in pixels; the other one keeps the proportions, rounded.
        crop: the side of the square cut out.
        place: where it is cut out, down and to the right, from [0, 1): draws that are uniform make every place as
            likely as any other. None is the centre.
        name: what an error calls the image.

    Raises:
        DataError: the image is too long for its width.
    """
    width, height = image.size
    least = min(width, height)
    new = (round(width * size / least), round(height * size / least))
    if new[0] * new[1] > _LARGEST:
        raise DataError(f"the image {name} of {width} x {height} pixels is no photograph: resized it has {new}")
    if new != image.size:
        image = image.resize(new, Image.Resampling.BICUBIC)
    down, right = (None, None) if place is None else place
    left, top = _start(new[0] - crop, right), _start(new[1] - crop, down)
    pixels = np.asarray(image.crop((left, top, left + crop, top + crop)), dtype=np.float32)
    return np.asarray(pixels / np.float32(127.5) - np.float32(1.0), dtype=np.float32)


def _start(room: int, place: float | None) -> int:
    """One of the ``room + 1`` places."""
    return room // 2 if place is None else int(place * (room + 1))
