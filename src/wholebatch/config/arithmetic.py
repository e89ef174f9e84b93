"""How the model computes: what ``precision: auto`` and ``channels_last: auto`` come to on this machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wholebatch.config.schema import Config

_BF16 = ("avx512_bf16", "amx_bf16")  # what an x86 processor calls its instructions for it


def precision(config: Config) -> str:
    """Return "fp32" or "bf16", what ``config.precision`` comes to.

    "auto" is bf16 where the device that will train computes with it: a CUDA GPU that does so in hardware, or an x86
    processor with avx512_bf16 or amx_bf16. Elsewhere it would be emulated, and be slower than fp32.
    """
    if config.precision != "auto":
        return config.precision
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device == "cpu" and _cpu_computes_bf16()
    return "bf16" if native else "fp32"


def channels_last(config: Config, model: nn.Module) -> bool:
    """Return whether the weights of ``model`` are laid out as ``torch.channels_last``.

    "auto" is true for a model that has convolutions of images and no group norm, whose kernels are slower then. It
    depends on the model alone, so that a run is laid out alike on every machine.
    """
    if config.channels_last != "auto":
        return bool(config.channels_last)
    layers = list(model.modules())
    return any(isinstance(layer, nn.Conv2d) for layer in layers) and not any(
        isinstance(layer, nn.GroupNorm) for layer in layers
    )


def _cpu_computes_bf16() -> bool:
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in _BF16)
