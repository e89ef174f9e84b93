"""What transformers are made of: self-attention, and a layer of it with a perceptron."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

TENSOR_PLAN = {  # of a model that has its layers in ``layers``; see wholebatch.parallel.tensor
    "layers.*.attention": "heads",
    "layers.*.mlp.0": "colwise",
    "layers.*.mlp.2": "rowwise",
    "layers.*.norm1": "sequence",
    "layers.*.norm2": "sequence",
}


class Attention(nn.Module):
    """Self-attention of several heads: softmax(q kᵀ / √d) v, then a linear layer.

    Args:
        width: numbers per token, a multiple of ``heads``.
        heads: how many parts of the width attend by themselves.
        dropout: rate, of the attention weights.
        causal: whether a token sees itself and those before it alone.
    """

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token makes of those it sees: (samples, tokens, width) to the same."""
        samples, tokens, width = x.shape
        # as many heads as qkv gives: under tensor parallel a process computes some of them
        q, k, v = self.qkv(x).view(samples, tokens, 3, -1, width // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        new = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return self.out(new.transpose(1, 2).reshape(samples, tokens, -1))


class Layer(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, dropout, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))
