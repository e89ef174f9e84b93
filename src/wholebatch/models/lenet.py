"""The convolutional network of the tutorials, after LeNet-5."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """Two 5 x 5 convolutions (6 and 16 channels), each pooled, then layers of 120, 84 and ``num_classes``.

    It is the network of PyTorch's CIFAR-10 tutorial, after Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-Based
    Learning Applied to Document Recognition, 1998.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        image_size: their height and width in pixels, 16 or more.

    Shapes:
        (samples, in_channels, image_size, image_size) to (samples, num_classes).
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> None:
        super().__init__()
        side = max(1, ((image_size - 4) // 2 - 4) // 2)
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)
        features = F.relu(self.fc1(torch.flatten(features, 1)))
        return self.fc3(F.relu(self.fc2(features)))
