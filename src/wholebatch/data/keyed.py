"""What the random transforms of images have in common: draws that belong to a sample, and to nothing else.

A transform draws from the key (seed, epoch, its own number) at each sample's number in the data set. What it
computes from the draws must not depend on how samples lie beside each other in a tensor, to the last bit. So
operations are copies, comparisons, and elementwise IEEE arithmetic (+, -, *, /, square root, rounding), which round
alike in every lane; functions whose vectorised form may differ (sine, exponential) come from tables made on the
host, and sums over pixels are sums of integers. No matrix products, and no means of floats.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from wholebatch.core import keys
from wholebatch.core.errors import DataError
from wholebatch.data.transform import change_field


class Keyed:
    """A transform of images, (samples, channels, height, width), by a few draws per sample.

    A subclass gives ``number`` (its own, so that no two kinds of transform draw the same), ``columns`` (draws per
    sample) and ``apply``.
    """

    number: ClassVar[int]
    columns: ClassVar[int]
    field: Any = 0

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return the batch with its images changed."""
        key = keys.key(seed, "augment", epoch, self.number)

        def change(images: Tensor) -> Tensor:
            check_images(images, type(self).__name__)
            return self.apply(images, keys.uniform(key, indices, self.columns))

        return change_field(batch, self.field, change)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Return new images from ``draws``, float32 from [0, 1), (samples, columns), on the host."""
        raise NotImplementedError

    def __repr__(self) -> str:
        given = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        if given.get("field") == 0:
            del given["field"]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def check_images(images: Tensor, who: str) -> None:
    """Raise where a tensor is no batch of images.

    Raises:
        DataError: it has not four axes.
    """
    if images.ndim != 4:
        raise DataError(f"{who} takes images (samples, channels, height, width), got {tuple(images.shape)}")


def below(draws: Tensor, choices: Tensor | int) -> Tensor:
    """Return whole numbers from 0 to below ``choices``, int64, evenly as far as 24 bits allow.

    >>> import torch
    >>> below(torch.tensor([0.0, 0.5, 1 - 2**-24]), 9)
    tensor([0, 4, 8])
    """
    return (draws.double() * choices).long()


def column(values: Tensor, images: Tensor) -> Tensor:
    """Return a number per sample so that it broadcasts over ``images``, on their device."""
    return values.to(images.device, non_blocking=True).view(-1, *[1] * (images.ndim - 1))
