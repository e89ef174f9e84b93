"""The residual block and the small ResNet-18 of the book."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from wholebatch.core.errors import InputTypeError


class Residual(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to their input: He et al. 2016 (arXiv:1512.03385), section 3.

    ``Residual(input_channels, num_channels)`` as in the Chinese edition, ``Residual(num_channels)`` as in the English
    one, whose convolutions find out their input's channels at the first forward. Either way ``use_1x1conv`` and
    ``strides`` follow, and the layers are ``conv1``, ``conv2``, ``conv3`` (None without ``use_1x1conv``), ``bn1`` and
    ``bn2``.

    Raises:
        InputTypeError: neither of the two forms.

    >>> import torch
    >>> Residual(3, 6, use_1x1conv=True, strides=2)(torch.zeros(4, 3, 6, 6)).shape
    torch.Size([4, 6, 3, 3])
    >>> Residual(6, True, 2)(torch.zeros(4, 3, 6, 6)).shape
    torch.Size([4, 6, 3, 3])
    """

    def __init__(self, *channels: Any, **options: Any) -> None:
        super().__init__()
        inputs, outputs, use_1x1conv, strides = _arguments(channels, options)
        self.conv1: nn.Module = _conv(inputs, outputs, 3, strides)
        self.conv2: nn.Module = _conv(None if inputs is None else outputs, outputs, 3, 1)
        self.conv3: nn.Module | None = _conv(inputs, outputs, 1, strides) if use_1x1conv else None
        self.bn1: nn.Module = nn.LazyBatchNorm2d() if inputs is None else nn.BatchNorm2d(outputs)
        self.bn2: nn.Module = nn.LazyBatchNorm2d() if inputs is None else nn.BatchNorm2d(outputs)

    def forward(self, X: Tensor) -> Tensor:
        """Return relu(input + its two convolutions); X is (n, channels, height, width)."""
        Y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(X)))))
        return F.relu(Y + (X if self.conv3 is None else self.conv3(X)))


def _conv(inputs: int | None, outputs: int, size: int, strides: int) -> nn.Module:
    if inputs is None:
        return nn.LazyConv2d(outputs, kernel_size=size, padding=size // 2, stride=strides)
    return nn.Conv2d(inputs, outputs, kernel_size=size, padding=size // 2, stride=strides)


def _arguments(given: tuple[Any, ...], options: dict[str, Any]) -> tuple[int | None, int, bool, int]:
    """(input channels or None, channels, use_1x1conv, strides): a second number makes it the Chinese form."""
    both = "input_channels" in options or (
        bool(given) and ("num_channels" in options or (len(given) > 1 and not isinstance(given[1], bool)))
    )
    names = [*(["input_channels"] if both else []), "num_channels", "use_1x1conv", "strides"]
    found = dict(zip(names, given, strict=False))
    wrong = len(given) > len(names) or set(found) & set(options) or set(options) - set(names)
    found |= options
    if wrong or "num_channels" not in found:
        words = [*map(repr, given), *(f"{name}={value!r}" for name, value in options.items())]
        raise InputTypeError(
            f"Residual({', '.join(words)}) is neither Residual(input_channels, num_channels, use_1x1conv=False, "
            "strides=1) nor Residual(num_channels, use_1x1conv=False, strides=1)"
        )
    inputs = found.get("input_channels")
    return inputs, found["num_channels"], bool(found.get("use_1x1conv", False)), found.get("strides", 1)


def resnet18(num_classes: int, in_channels: int = 1) -> nn.Sequential:
    """Return the book's ResNet-18 for small images: 3 x 3 convolution without stride and without pooling at first."""
    net = nn.Sequential(nn.Conv2d(in_channels, 64, kernel_size=3, stride=1, padding=1), nn.BatchNorm2d(64), nn.ReLU())
    widths = [64, 64, 128, 256, 512]
    for number in range(1, 5):
        before, width = widths[number - 1], widths[number]
        first = Residual(before, width) if number == 1 else Residual(before, width, use_1x1conv=True, strides=2)
        net.add_module(f"resnet_block{number}", nn.Sequential(first, Residual(width, width)))
    net.add_module("global_avg_pool", nn.AdaptiveAvgPool2d((1, 1)))
    net.add_module("fc", nn.Sequential(nn.Flatten(), nn.Linear(512, num_classes)))
    return net
