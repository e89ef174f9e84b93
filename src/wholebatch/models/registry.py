"""Models by name, their first weights a function of a seed."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from wholebatch.core import keys
from wholebatch.core.errors import ConfigError, nearest
from wholebatch.models.lenet import LeNet
from wholebatch.models.mlp import MLP
from wholebatch.models.small_cnn import SmallCNN

MODELS: dict[str, type[nn.Module]] = {"small_cnn": SmallCNN, "lenet": LeNet, "mlp": MLP}


def build(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Return the model ``name`` with weights that depend on ``seed`` alone.

    The caller's generator stays as it was.

    Args:
        name: ``small_cnn``, ``lenet`` or ``mlp``.
        seed: decides the initial weights.
        options: the model's own, ``num_classes`` and ``in_channels`` among them.

    Raises:
        ConfigError: an unknown model or option (names the nearest), or an option the model cannot be made with.

    >>> model = build("mlp", num_classes=3, in_channels=4, image_size=1, hidden=(5,), seed=1)
    >>> [tuple(weight.shape) for weight in model.parameters()]
    [(5, 4), (5,), (3, 5), (3,)]
    """
    if name not in MODELS:
        raise ConfigError(f"no model {name!r}{nearest(name, MODELS)}; there are {', '.join(MODELS)}")
    known = inspect.signature(MODELS[name]).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"{name} has no option {option!r}{nearest(option, known)}; it has {', '.join(known)}")
    generator = torch.default_generator  # seeded alone: torch.manual_seed would reach the accelerators' generators, too
    before = generator.get_state()
    try:
        generator.manual_seed(keys.key(seed, "init"))
        return MODELS[name](**options)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"{name} cannot be made with {options}: {error}") from error
    finally:
        generator.set_state(before)
