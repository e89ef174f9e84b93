"""Weights and masks that belong to the elements of another tensor: one rule for which shapes fit."""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.core.errors import InputError, InputTypeError


def per_element(part: Tensor, whole: torch.Size, name: str, of: str) -> Tensor:
    """Return ``part`` expanded to the shape ``whole``: it has that shape, its leading axes, or none.

    A weight of shape (n,) for values of shape (n, …) is one per sample. Axes of length 1 are not stretched,
    and trailing axes are not aligned as broadcasting would: that is how (n,) and (n, 1) become (n, n).

    Raises:
        InputError: the shapes do not fit.
    """
    if part.shape != whole[: part.ndim]:
        raise InputError(
            f"{name} of shape {tuple(part.shape)} does not fit {of} of shape {tuple(whole)}; "
            f"give it {of}'s shape, or the leading axes of it (one {name} per sample)"
        )
    return part.reshape(part.shape + (1,) * (len(whole) - part.ndim)).expand(whole)


def bool_mask(mask: Tensor | bool, whole: torch.Size, of: str, device: torch.device) -> Tensor:
    """Return a mask (True counts) as a bool tensor of shape ``whole`` on ``device``.

    Raises:
        InputTypeError: it is not of bools.
        InputError: its shape does not fit.
    """
    mask = torch.as_tensor(mask, device=device)
    if mask.dtype is not torch.bool:
        raise InputTypeError(f"a mask is made of bools, True for what counts; got {mask.dtype}. Give mask.bool()")
    return per_element(mask, whole, "mask", of)
