"""A small convolutional network for small images, without batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Three 3 x 3 convolutions with group norm, one pooling in between, dropout, one linear layer.

    Every sample's output depends on that sample alone, so that any cut into micro-batches gives the same.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        image_size: their height and width in pixels, a multiple of 2.
        width: channels of the first convolution, a multiple of 4; the others have twice as many.
        dropout: rate before the linear layer.

    Shapes:
        (samples, in_channels, image_size, image_size) to (samples, num_classes).
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 1, image_size: int = 8, width: int = 20, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_block(in_channels, width),
            *_block(width, 2 * width),
            nn.MaxPool2d(2),
            *_block(2 * width, 2 * width),
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width * (image_size // 2) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.dropout(torch.flatten(self.body(images), 1)))


def _block(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.GroupNorm(4, out_channels),
        nn.ReLU(),
    )
