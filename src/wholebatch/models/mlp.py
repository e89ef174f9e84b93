"""A multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """Flatten, then linear layers with ReLU (and dropout) between them.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        image_size: their height and width in pixels; 1 for inputs that are plain rows of ``in_channels`` numbers.
        hidden: widths of the layers in between; none makes it a linear classifier.
        dropout: rate behind each hidden layer.

    Shapes:
        (samples, ...), in_channels · image_size² numbers per sample, to (samples, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 8,
        hidden: Sequence[int] = (128,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [in_channels * image_size**2, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        return self.layers(inputs)
