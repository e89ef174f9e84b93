"""Mirror images from left to right."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data.keyed import Keyed


class HorizontalFlip(Keyed):
    """Mirror every image from left to right with probability ``p``; bytes stay bytes.

    Args:
        p: probability.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        DataError: ``p`` is no probability.
    """

    number, columns = 3, 1

    def __init__(self, p: float = 0.5, field: Any = 0) -> None:
        if not 0 <= p <= 1:
            raise DataError(f"HorizontalFlip's p is a probability from 0 to 1, got {p}")
        self.p, self.field = p, field

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return ``images`` with those mirrored whose draw is below ``p``."""
        chosen = (draws[:, 0] < self.p).nonzero().view(-1).to(images.device, non_blocking=True)
        return images.index_copy(0, chosen, images.index_select(0, chosen).flip(3))
