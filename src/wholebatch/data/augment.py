"""Small random shifts, rotations and scalings of images, keyed by (seed, epoch, sample).

The bits of an augmented image depend on its key alone, not on the micro-batch it is in. So everything
is elementwise multiplication and addition, which round alike wherever an element stands in its tensor:
no matrix product (its order of addition may follow the batch size) and no ``torch.sin`` (vector lanes and the tail of a
tensor may round differently); sine and cosine come from a table made once on the host.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wholebatch.core import keys
from wholebatch.core.errors import DataError
from wholebatch.data.transform import change_field

_ANGLES = 4096  # steps of the table of angles; 10 degrees make steps of 0.005 degrees


class ShiftRotate:
    """Shift, rotate and scale every image by its own small random amounts, bilinear, zeros coming in from outside.

    Each amount is uniform and depends on (seed, epoch, sample) only. Bytes become float32 of the same
    range, so put :class:`Normalize` behind it.

    Args:
        max_shift: pixels, along each axis, to either side.
        max_degrees: degrees, to either side, about the middle of the image.
        max_scale: largest relative change of size, to either side (0.1: 0.9 to 1.1).
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        DataError: an amount that is negative or not finite, or ``max_scale`` of 1 or more; images that are
            not of shape (samples, channels, height, width).
    """

    def __init__(
        self, max_shift: float = 1.0, max_degrees: float = 10.0, max_scale: float = 0.0, field: Any = 0
    ) -> None:
        for name, value in (("max_shift", max_shift), ("max_degrees", max_degrees), ("max_scale", max_scale)):
            if not 0 <= value < math.inf:
                raise DataError(f"{name} must be finite and not negative, got {value}")
        if max_scale >= 1:
            raise DataError(f"max_scale must be below 1 (0.1 changes the size by up to 10 %), got {max_scale}")
        self.max_shift, self.max_degrees, self.max_scale, self.field = max_shift, max_degrees, max_scale, field
        span = math.radians(max_degrees)
        angles = [span * ((2 * step + 1) / _ANGLES - 1) for step in range(_ANGLES)]
        self._turns = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles], dtype=torch.float32)

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return the batch with its images moved; same shapes."""
        key = keys.key(seed, "augment", epoch)
        return change_field(batch, self.field, lambda images: self.apply(images, keys.uniform(key, indices, 4)))

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return ``images`` (N, C, H, W) moved by ``draws`` from [0, 1), (N, 4): x, y, angle, size."""
        if images.ndim != 4:
            raise DataError(f"ShiftRotate takes images (samples, channels, height, width), got {tuple(images.shape)}")
        if not images.is_floating_point() or images.dtype.itemsize < 4:
            images = images.to(torch.float32)
        grid = self._grid(draws.to(images.device), images.shape[2], images.shape[3]).to(images.dtype)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def _grid(self, draws: Tensor, height: int, width: int) -> Tensor:
        """Where each pixel of the result comes from, in grid_sample's units (-1 to 1): (N, H, W, 2)."""
        if self._turns.device != draws.device:
            self._turns = self._turns.to(draws.device)
        turns = self._turns[(draws[:, 2] * _ANGLES).long()]
        if self.max_scale:
            turns = turns / (1 + (2 * draws[:, 3:] - 1) * self.max_scale)
        cos, sin = turns[:, :1, None], turns[:, 1:, None]
        shift = (2 * draws[:, :2, None, None] - 1) * self.max_shift
        x = torch.arange(width, dtype=torch.float32, device=draws.device) - (width - 1) / 2
        y = (torch.arange(height, dtype=torch.float32, device=draws.device) - (height - 1) / 2).unsqueeze(1)
        from_x = cos * x + sin * y - shift[:, 0]
        from_y = cos * y - sin * x - shift[:, 1]
        return torch.stack((from_x * (2 / width), from_y * (2 / height)), dim=-1)

    def __repr__(self) -> str:
        return f"ShiftRotate(max_shift={self.max_shift}, max_degrees={self.max_degrees}, max_scale={self.max_scale})"
