"""The normalisation layer that a model is asked for."""

from __future__ import annotations

from torch import nn

NORMS = ("group", "batch", "none")


def norm_layer(kind: str, channels: int) -> nn.Module:
    """Return the normalisation of ``channels``, or a layer that does nothing.

    ``group`` normalises every sample by itself (Y. Wu and K. He, Group Normalization, 2018): 4 channels a group, at
    most 32 groups. ``batch`` normalises over the micro-batch, whose size the result then depends on. Both have a weight
    and a bias per channel.

    Raises:
        ValueError: another kind.

    >>> norm_layer("group", 16).num_groups
    4
    """
    if kind == "group":
        return nn.GroupNorm(min(32, channels // 4), channels)
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "none":
        return nn.Identity()
    raise ValueError(f"norm={kind!r}; expected group, batch or none")
