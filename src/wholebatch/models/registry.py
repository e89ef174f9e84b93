"""Models by name, their first weights a function of a seed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from wholebatch.core import keys
from wholebatch.core.errors import ConfigError, nearest
from wholebatch.models import foreign
from wholebatch.models.contrastive import Contrastive
from wholebatch.models.lenet import LeNet
from wholebatch.models.mlp import MLP
from wholebatch.models.resnet import resnet18, resnet20, resnet56
from wholebatch.models.resnet9 import ResNet9
from wholebatch.models.small_cnn import SmallCNN
from wholebatch.models.transformer import TransformerLM
from wholebatch.models.vit import ViT

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": SmallCNN,
    "lenet": LeNet,
    "mlp": MLP,
    "resnet9": ResNet9,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet56": resnet56,
    "vit": ViT,
    "transformer_lm": TransformerLM,
    "contrastive": Contrastive,
}


def options_of(name: str) -> set[str] | None:
    """Return the names of the options that the model ``name`` takes, or None where only its own library knows.

    >>> sorted(options_of("resnet20")), options_of("timm:resnet50")
    (['in_channels', 'norm', 'num_classes'], None)

    Raises:
        ConfigError: an unknown model (the nearest is named).
    """
    if foreign.is_foreign(name):
        return None
    if name not in MODELS:
        raise ConfigError(
            f"no model {name!r}{nearest(name, MODELS)}; there are {', '.join(MODELS)}, and others by name: "
            "timm:resnet50, torchvision:resnet18, package.module:function"
        )
    return set(inspect.signature(MODELS[name]).parameters)


def build(name: str, *, seed: int = 0, **options: Any) -> nn.Module:
    """Return the model ``name`` with weights that depend on ``seed`` alone.

    The caller's generator stays as it was.

    Args:
        name: one of ``MODELS``, or somebody else's model: ``timm:resnet50``, ``torchvision:resnet18``,
            ``package.module:function``.
        seed: decides the initial weights.
        options: the model's own, ``num_classes`` and ``in_channels`` among them; of others' models ``pretrained``, too.

    Raises:
        ConfigError: an unknown model or option (names the nearest), an option the model cannot be made with, a library
            that is not installed, or weights that cannot be fetched.

    >>> model = build("mlp", num_classes=3, in_channels=4, image_size=1, hidden=(5,), seed=1)
    >>> [tuple(weight.shape) for weight in model.parameters()]
    [(5, 4), (5,), (3, 5), (3,)]
    """
    known = options_of(name)
    for option in options:
        if known is not None and option not in known:
            hint = nearest(option, known)
            raise ConfigError(f"{name} has no option {option!r}{hint}; it has {', '.join(sorted(known))}")
    generator = torch.default_generator  # seeded alone: torch.manual_seed would reach the accelerators' generators, too
    before = generator.get_state()
    try:
        generator.manual_seed(keys.key(seed, "init"))
        return foreign.make(name, options) if known is None else MODELS[name](**options)
    except ConfigError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ConfigError(f"{name} cannot be made with {options}: {error}") from error
    finally:
        generator.set_state(before)
