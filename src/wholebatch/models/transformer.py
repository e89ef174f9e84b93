"""A small language model: a transformer that says what comes next at every place of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholebatch.models.attention import TENSOR_PLAN, Layer


class TransformerLM(nn.Module):
    """Tokens and their places, layers of causal attention, the tokens' own vectors as the last layer.

    A. Radford et al., Language Models are Unsupervised Multitask Learners, 2019: norms before each branch, weights from
    a normal distribution of deviation 0.02, at the end of a branch divided by √(2 · depth); the last layer is
    the table of tokens again (O. Press and L. Wolf, 2017). No place sees a later one, so that padding behind a
    text changes nothing before it. Dropout is keyed while a step runs, so that the micro-batch does not matter.

    Args:
        vocabulary: how many tokens there are.
        length: the most tokens of a sample.
        width: numbers per token, a multiple of ``heads``.
        depth: number of layers.
        heads: attention heads per layer.
        dropout: rate, of attention weights, behind every branch and of what goes into the first layer.

    Shapes:
        int64 (samples, tokens) to (samples, vocabulary, tokens): the classes are axis 1, as torch's losses and
        ``wholebatch.Accuracy`` have it, and ``nn.CrossEntropyLoss()`` takes targets of (samples, tokens).
    """

    tensor_plan = TENSOR_PLAN

    def __init__(
        self,
        vocabulary: int = 256,
        length: int = 256,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads=}")
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.empty(length, width))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(Layer(width, heads, dropout, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.places, std=0.02)
        for name, part in self.named_modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                ends_a_branch = name.endswith(("attention.out", "mlp.2"))
                nn.init.normal_(part.weight, std=0.02 / (2 * depth) ** 0.5 if ends_a_branch else 0.02)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token that follows, at every place."""
        x = self.dropout(self.tokens(tokens) + self.places[: tokens.shape[1]])
        return F.linear(self.norm(self.layers(x)), self.tokens.weight).transpose(1, 2)
