"""Dropout whose masks are a function of (seed, step, position in the whole batch, call).

The functions here stand in for those of the same name in ``torch.nn.functional`` while a step runs
(:mod:`wholebatch.step.draws` puts them there). Each asks for its mask with :meth:`Masks.drop`, which knows
the micro-batch, and leaves backward to autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

# alpha dropout keeps mean and variance of SELU's output (Klambauer et al. 2017); the value is -scale · alpha
_ALPHA = 1.7580993408473766


class Masks(Protocol):
    """Where the keyed masks come from."""

    def drop(self, x: Tensor, lead: tuple[int, ...], p: float, heads: bool = False) -> Tensor:
        """Return a boolean mask for the leading axes ``lead`` of ``x``, True with probability ``p``.

        ``heads`` says that the third axis from the end are heads of attention, of which these may be some.
        """
        ...


def keyed_functions(masks: Masks, originals: dict[str, Any]) -> dict[str, Callable[..., Tensor]]:
    """Return the keyed functions by the name they have in ``torch.nn.functional``.

    ``originals`` are torch's own, which answer whatever draws nothing (evaluation, p = 0) or is wrong.
    """

    def plain(name: str, lead_of: Callable[[Tensor], tuple[int, ...]], apply: Callable[..., Tensor]) -> Any:
        def keyed(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
            if not training or not 0 < p <= 1:
                return originals[name](input, p, training, inplace)
            lead = lead_of(input)
            drop = masks.drop(input, lead, p)
            if len(lead) < input.ndim:
                drop = drop.view(*lead, *(1,) * (input.ndim - len(lead)))
            return apply(input, drop, p, inplace)

        keyed.__name__ = keyed.__qualname__ = name
        return keyed

    return {
        "dropout": plain("dropout", lambda x: tuple(x.shape), _zero),
        "dropout1d": plain("dropout1d", lambda x: _channels(x, batched=3), _zero),
        "dropout2d": plain("dropout2d", lambda x: tuple(x.shape[:2]), _zero),
        "dropout3d": plain("dropout3d", lambda x: _channels(x, batched=5), _zero),
        "alpha_dropout": plain("alpha_dropout", lambda x: tuple(x.shape), _saturate),
        "feature_alpha_dropout": plain("feature_alpha_dropout", lambda x: tuple(x.shape[:2]), _saturate),
        "scaled_dot_product_attention": _attention(masks, originals),
    }


def _channels(x: Tensor, batched: int) -> tuple[int, ...]:
    """The axes whose entries are dropped as one: samples and channels, or channels alone without a batch."""
    return tuple(x.shape[: 2 if x.ndim == batched else 1])


def _zero(x: Tensor, drop: Tensor, p: float, inplace: bool) -> Tensor:
    scale = 1.0 / (1.0 - p) if p < 1 else 0.0
    kept = x.mul_(scale) if inplace else x * scale
    return kept.masked_fill_(drop, 0)


def _saturate(x: Tensor, drop: Tensor, p: float, inplace: bool) -> Tensor:
    scale = 1.0 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p)) if p < 1 else 0.0
    kept = x.mul_(scale) if inplace else x * scale
    return kept.masked_fill_(drop, -_ALPHA * scale).add_(_ALPHA * scale * p)


def _attention(masks: Masks, originals: dict[str, Any]) -> Callable[..., Tensor]:
    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if dropout_p == 0.0:
            original = originals["scaled_dot_product_attention"]
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        if attn_mask is not None:
            closed = attn_mask.dtype is torch.bool
            scores = scores.masked_fill(~attn_mask, -math.inf) if closed else scores + attn_mask
        if attn_mask is None:
            weights = torch.softmax(scores, -1)
        else:  # a query that may look nowhere gets zeros, as torch's own gives, and no NaN in backward
            blind = (scores == -math.inf).all(-1, keepdim=True)
            weights = torch.softmax(scores.masked_fill(blind, 0), -1).masked_fill(blind, 0)
        drop = masks.drop(weights, tuple(weights.shape), dropout_p, heads=True)
        return _zero(weights, drop, dropout_p, inplace=False) @ value

    return scaled_dot_product_attention
