"""The finished gradient: divided once, looked through for NaN and infinity, clipped."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def values_of(gradient: Tensor) -> Tensor:
    """Return what a gradient, sparse or dense, holds."""
    return gradient.values() if gradient.is_sparse else gradient


@functools.lru_cache(maxsize=64)
def _scalar(value: float, device: torch.device) -> Tensor:
    """A float32 scalar that nobody changes."""
    with torch.inference_mode(False):
        return torch.full((), value, dtype=torch.float32, device=device)


def divide_(gradients: Sequence[Tensor], divisor: float, check: bool) -> bool:
    """Divide all gradients in place; return whether they are finite (True where ``check`` is off).

    A power of two is divided by in the same pass that looks for NaN and infinity, its product being exact.
    """
    mantissa, exponent = math.frexp(divisor)
    power_of_two = mantissa == 0.5 and -100 < exponent < 100
    plain: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        parts = values_of(gradient)
        plain.setdefault((parts.device, parts.dtype), []).append(parts)
    finite = True
    for (device, dtype), group in plain.items():
        if check and not dtype.is_complex:
            found = torch.zeros((), dtype=torch.float32, device=device)
            scale = _scalar(2.0 ** (1 - exponent) if power_of_two else 1.0, device)
            torch._amp_foreach_non_finite_check_and_unscale_(group, found, scale)
            finite = finite and not found.item()
            if power_of_two:
                continue
        elif check:
            finite = finite and all_finite(group)
        torch._foreach_div_(group, divisor)
    return finite


def all_finite(gradients: Iterable[Tensor]) -> bool:
    """Return whether no gradient holds NaN or infinity."""
    return all(bool(values_of(g).isfinite().all()) for g in gradients)


def clip_(gradients: Sequence[Tensor], clip_norm: float, norm: Tensor) -> None:
    """Scale all gradients by ``min(1, clip_norm / (norm + 1e-6))``, as ``clip_grad_norm_`` does."""
    coefficient = torch.clamp(clip_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        parts = values_of(gradient)
        parts.mul_(coefficient.to(parts.device))
