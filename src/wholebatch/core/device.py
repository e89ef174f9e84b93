"""Which device is meant."""

from __future__ import annotations

import torch
from torch import nn

from wholebatch.core.errors import ConfigError


def device_for(device: str | torch.device, model: nn.Module) -> torch.device:
    """Return the device that ``device`` means for ``model``: "auto" is a GPU where there is one, or where it is.

    Raises:
        ConfigError: it cannot be used.

    >>> device_for("cpu", nn.Linear(2, 2))
    device(type='cpu')
    """
    if device == "auto":
        found = device_of(model)
        return torch.device("cuda") if found.type == "cpu" and torch.cuda.is_available() else found
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={device!r} cannot be used: {reason}; try 'auto' or 'cpu'") from error
    return where


def device_of(model: nn.Module) -> torch.device:
    """Return where the first parameter of ``model`` is; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
