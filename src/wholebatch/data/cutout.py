"""Cover a square of every image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data.keyed import Keyed, below, column


class Cutout(Keyed):
    """Cover a square of ``size`` pixels whose middle is anywhere in the image, so that it may reach over the edge.

    T. DeVries and G. W. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
    Bytes stay bytes.

    Args:
        size: side of the square, in pixels.
        fill: what covers it. Behind :class:`Normalize` 0 is the mean colour, before it black.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        DataError: a ``size`` below 1.
    """

    number, columns = 4, 2

    def __init__(self, size: int = 8, fill: float = 0, field: Any = 0) -> None:
        if size < 1:
            raise DataError(f"Cutout covers a square of at least 1 pixel, got {size}")
        self.size, self.fill, self.field = size, fill, field

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return ``images`` covered about the middles ``draws``: row, column."""
        rows, columns = images.shape[2:]
        tall = _within(rows, below(draws[:, 0], rows) - self.size // 2, self.size, images)
        wide = _within(columns, below(draws[:, 1], columns) - self.size // 2, self.size, images)
        return images.masked_fill(tall.unsqueeze(-1) & wide.unsqueeze(-2), self.fill)


def _within(pixels: int, start: Tensor, length: int, images: Tensor) -> Tensor:
    """Which of ``pixels`` lie in ``length`` of them from ``start``, per sample: (N, 1, pixels)."""
    place = torch.arange(pixels, device=images.device) - column(start, images).view(-1, 1)
    return ((place >= 0) & (place < length)).unsqueeze(1)
