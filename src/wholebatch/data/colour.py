"""Random brightness, contrast, saturation and hue."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data.keyed import Keyed, column

_GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as Pillow and torchvision have it
_FINE = 1 << 16  # a grey level's mean is a sum of whole numbers of this fraction, which has no order


class ColorJitter(Keyed):
    """Change brightness, contrast, saturation and hue of every image by its own random amounts, in this order.

    Brightness, contrast and saturation blend the image with black, its mean grey and its own grey levels: the image's
    share is uniform from ``max(0, 1 - amount)`` to ``1 + amount``. The hue turns by a uniform share of the whole
    circle, up to ``hue`` to either side. These are torchvision's operations, whose order there is random. The dtype
    stays; bytes are rounded once, at the end.

    Args:
        brightness, contrast, saturation: amounts, 0 or more.
        hue: amount, 0 to 0.5.
        top: largest value of the images: 255 for 8 bits, 1 for floats from 0 to 1.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        DataError: an amount outside its range; images without 1 or 3 channels.
    """

    number, columns = 5, 4

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        top: float = 255.0,
        field: Any = 0,
    ) -> None:
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value < math.inf:
                raise DataError(f"ColorJitter's {name} must be finite and not negative, got {value}")
        if not 0 <= hue <= 0.5:
            raise DataError(f"ColorJitter's hue is a share of the circle from 0 to 0.5, got {hue}")
        if not 0 < top < math.inf:
            raise DataError(f"ColorJitter's top is the largest value of the images, above 0; got {top}")
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.top, self.field = top, field

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return ``images`` changed by ``draws``: brightness, contrast, saturation, hue."""
        if images.shape[1] not in (1, 3):
            raise DataError(f"ColorJitter takes images of 1 or 3 channels, got {tuple(images.shape)}")
        kind = images.dtype if images.is_floating_point() and images.dtype.itemsize >= 4 else torch.float32
        new, colours = images.to(kind), images.shape[1] == 3
        if self.brightness:
            new = (new * self._share(draws[:, 0], self.brightness, new)).clamp_(0, self.top)
        if self.contrast:
            new = self._blend(new, self._mean(_grey(new)), self._share(draws[:, 1], self.contrast, new))
        if self.saturation and colours:
            new = self._blend(new, _grey(new), self._share(draws[:, 2], self.saturation, new))
        if self.hue and colours:
            new = _turned(new, column((2 * draws[:, 3] - 1) * self.hue, new).to(kind))
        return new.to(images.dtype) if images.is_floating_point() else new.round().to(images.dtype)

    def _share(self, draw: Tensor, amount: float, images: Tensor) -> Tensor:
        low = max(0.0, 1 - amount)
        return column(draw * (1 + amount - low) + low, images).to(images.dtype)

    def _blend(self, images: Tensor, other: Tensor, share: Tensor) -> Tensor:
        return (images * share + other * (1 - share)).clamp_(0, self.top)

    def _mean(self, grey: Tensor) -> Tensor:
        """The mean of each image's grey levels, by a sum of integers: (N, 1, 1, 1)."""
        whole = (grey * (_FINE / self.top)).round().to(torch.int64).sum((1, 2, 3), keepdim=True)
        pixels = grey.shape[2] * grey.shape[3]
        return (whole.double() * (self.top / _FINE) / pixels).to(grey.dtype)


def _grey(images: Tensor) -> Tensor:
    """Grey levels, (N, 1, H, W)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    """``images`` with their hue turned by ``turn`` of the circle: to HSV and back, without branches.

    Back: f(n) = v - c · max(0, min(k, 4 - k, 1)), k = (n + hue) mod 6, for red n = 5, green 3, blue 1, where v is the
    largest and c the largest minus the smallest of the three.
    """
    red, green, blue = images.split(1, 1)
    value = images.amax(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + turn * 6
    parts = []
    for number in (5, 3, 1):
        k = hue + number
        k = k - (k / 6).floor() * 6
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.cat(parts, 1)
