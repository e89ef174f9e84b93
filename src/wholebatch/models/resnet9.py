"""The residual network of nine layers that trains CIFAR-10 in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wholebatch.models.norm import norm_layer

_SCALE = 0.125  # of the logits, from the same entry


class ResNet9(nn.Module):
    """Eight 3 x 3 convolutions, two pairs of them residual, a pooling after each growth, a linear layer.

    It is the network of D. Page's DAWNBench entry, How to Train Your ResNet, 2018 (there with batch norm): 6.57 million
    parameters with ``norm="batch"`` or ``"group"``.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: "group", "batch" or "none"; see :func:`wholebatch.models.norm.norm_layer`.
        width: channels of the first convolution, a multiple of 4; the others have 2, 4 and 8 times as many. 16 makes
            0.41 million parameters.

    Shapes:
        (samples, in_channels, H, W) to (samples, num_classes); H and W from 16.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, norm: str = "group", width: int = 64) -> None:
        super().__init__()
        self.begin = _convolution(in_channels, width, norm)
        self.layer1 = nn.Sequential(_convolution(width, 2 * width, norm), nn.MaxPool2d(2))
        self.pair1 = nn.Sequential(_convolution(2 * width, 2 * width, norm), _convolution(2 * width, 2 * width, norm))
        self.layer2 = nn.Sequential(_convolution(2 * width, 4 * width, norm), nn.MaxPool2d(2))
        self.layer3 = nn.Sequential(_convolution(4 * width, 8 * width, norm), nn.MaxPool2d(2))
        self.pair3 = nn.Sequential(_convolution(8 * width, 8 * width, norm), _convolution(8 * width, 8 * width, norm))
        self.head = nn.Linear(8 * width, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.layer1(self.begin(images))
        x = self.layer3(self.layer2(x + self.pair1(x)))
        x = x + self.pair3(x)
        return self.head(torch.amax(x, (2, 3))) * _SCALE


def _convolution(before: int, after: int, norm: str) -> nn.Sequential:
    layer = nn.Conv2d(before, after, 3, padding=1, bias=norm == "none")
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al., Delving Deep into Rectifiers, 2015
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, norm_layer(norm, after), nn.ReLU())
