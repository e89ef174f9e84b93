"""Residual networks for small images: depths 18, 20 and 56.

K. He, X. Zhang, S. Ren, J. Sun, Deep Residual Learning for Image Recognition, 2015. Depths 20 and 56 are those of its
section 4.2 (6n + 2 layers of 16, 32, 64 channels; where the size halves, the shortcut takes every second pixel and
fills up with channels of zeros). Depth 18 is that of its table 1 (64 to 512 channels, shortcuts by 1 x 1
convolutions) with a 3 x 3 convolution and no pooling at the beginning, as is usual for 32 x 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from wholebatch.models.norm import norm_layer


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut: relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))."""

    def __init__(self, before: int, after: int, stride: int, norm: str, projects: bool) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=bias)
        self.norm1 = norm_layer(norm, after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=bias)
        self.norm2 = norm_layer(norm, after)
        self.stride, self.added = stride, 0
        self.shortcut: nn.Module = nn.Identity()
        if projects and before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=bias), norm_layer(norm, after))
        elif before != after:
            self.added = after - before

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        new = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.added:  # every second pixel, channels of zeros on both sides
            half = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.added - half))
        return F.relu(new + self.shortcut(x))


class ResNet(nn.Module):
    """A 3 x 3 convolution, stages of residual blocks (all but the first halve the image), the mean, a linear layer.

    Weights as in K. He et al., Delving Deep into Rectifiers, 2015 (normal, by fan out); the last scale of every
    block begins at 0, so that the block begins as its shortcut (P. Goyal et al., Accurate, Large Minibatch SGD, 2017,
    section 5.1); without normalisation the last convolution does.

    Args:
        blocks: number of blocks per stage.
        widths: channels per stage.
        num_classes: length of the output.
        in_channels: channels of the images.
        norm: "group", "batch" or "none"; see :func:`wholebatch.models.norm.norm_layer`.
        projects: shortcuts between stages are 1 x 1 convolutions.

    Shapes:
        (samples, in_channels, H, W) to (samples, num_classes).
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 10,
        in_channels: int = 3,
        norm: str = "group",
        projects: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=norm == "none")
        self.norm = norm_layer(norm, widths[0])
        stages: list[nn.Module] = []
        for stage, (before, after) in enumerate(pairwise([widths[0], *widths])):
            for number in range(blocks[stage]):
                stride = 2 if stage and not number else 1
                stages.append(Block(before if not number else after, after, stride, norm, projects))
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], num_classes)
        begin(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        features = self.blocks(F.relu(self.norm(self.conv(images))))
        return self.head(features.mean((2, 3)))


def begin(model: nn.Module) -> None:
    """Give convolutions He's weights, and let every :class:`Block` begin as its shortcut."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in model.modules():
        if isinstance(block, Block):
            last = block.conv2 if isinstance(block.norm2, nn.Identity) else block.norm2
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]


def resnet18(num_classes: int = 10, in_channels: int = 3, norm: str = "group") -> ResNet:
    """Return the :class:`ResNet` of 18 layers, 64 to 512 channels: 11.17 million parameters."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, in_channels, norm)


def resnet20(num_classes: int = 10, in_channels: int = 3, norm: str = "group") -> ResNet:
    """Return the :class:`ResNet` of 20 layers, 16 to 64 channels: 0.27 million parameters."""
    return ResNet((3, 3, 3), (16, 32, 64), num_classes, in_channels, norm, projects=False)


def resnet56(num_classes: int = 10, in_channels: int = 3, norm: str = "group") -> ResNet:
    """Return the :class:`ResNet` of 56 layers, 16 to 64 channels: 0.85 million parameters."""
    return ResNet((9, 9, 9), (16, 32, 64), num_classes, in_channels, norm, projects=False)
