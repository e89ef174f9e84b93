"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wholebatch.models.attention import TENSOR_PLAN, Layer


class ViT(nn.Module):
    """Patches as tokens, layers of attention, the mean of the tokens, a linear layer.

    A. Dosovitskiy et al., An Image is Worth 16x16 Words, 2020; the mean in place of a class token as in L. Beyer et
    al., Better plain ViT baselines for ImageNet-1k, 2022. No layer looks beyond a sample, and dropout is keyed while a
    step runs, so that the micro-batch does not matter.

    Args:
        num_classes: length of the output.
        in_channels: channels of the images.
        image_size: their height and width in pixels, a multiple of ``patch``.
        patch: height and width of a patch.
        width: numbers per token, a multiple of ``heads``.
        depth: number of layers.
        heads: attention heads per layer.
        dropout: rate, of attention weights and behind every branch.

    Shapes:
        (samples, in_channels, image_size, image_size) to (samples, num_classes).
    """

    tensor_plan = TENSOR_PLAN

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size % patch or width % heads:
            raise ValueError(f"image_size {image_size} and width {width} are no multiples of {patch=} and {heads=}")
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.places = nn.Parameter(torch.empty(1, (image_size // patch) ** 2, width))
        self.layers = nn.Sequential(*(Layer(width, heads, dropout) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.places, std=0.02)  # the paper's; linear layers: Xavier's, as its code has it
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.layers(tokens)).mean(1))
