"""From ``data.normalize`` and ``data.augment`` to what the loaders apply."""

from __future__ import annotations

from typing import Any

import torch

from wholebatch import data
from wholebatch.config.build_data import first_input, holds_tokens
from wholebatch.config.schema import Augment, Config
from wholebatch.core.errors import ConfigError, InputError
from wholebatch.data.select import selection

_BYTE = 1 / 255  # what one step of an image is worth where its data set does not say


def normalizing(config: Config, dataset: Any) -> tuple[data.Transform | None, Any]:
    """Return what makes a model's inputs of stored images, and ``data.normalize`` as it came out.

    "auto" is the data set's own transform, or, where bytes have none, mean and deviation of the training images,
    computed here; they come out as ``{"mean": [...], "std": [...]}``, so that a run can keep them. Mean and deviation
    that are said count from 0 to 1 for bytes, and for images that are floats in their own values.

    Raises:
        ConfigError: something is to be done to images, and the data are text.
        DataError: the statistics cannot be computed.
    """
    if holds_tokens(first_input(dataset)):
        if config.data.normalize not in ("auto", None) or config.data.augment != Augment():
            raise ConfigError(
                f"data.name={config.data.name}: data.normalize and data.augment are for images, not text; leave them "
                "out, or start from the recipe: wholebatch train text"
            )
        return None, config.data.normalize
    asked, own = config.data.normalize, getattr(dataset, "transform", None)
    scale = getattr(own, "scale", _BYTE if _bytes(dataset) else 1.0)
    if asked == "auto":
        if own is not None or not _bytes(dataset):
            return own, "auto"
        found = data.channel_statistics(dataset)
        asked = {"mean": list(found.mean), "std": list(found.std)}
    if asked is None:
        return (data.Normalize(scale=scale) if _bytes(dataset) else None), None
    mean, std = (tuple(value) if isinstance(value, list) else value for value in (asked["mean"], asked["std"]))
    return data.Normalize(mean, std, scale=scale), asked


def training(config: Config, last: data.Transform | None) -> data.Transform | None:
    """Return the augmentation, where there is any, and ``last`` behind it.

    Raises:
        ConfigError: the callable cannot be found or made.
    """
    steps = _augmentation(config.data.augment, _top(last))
    if not steps:
        return last
    return data.Compose(*steps, *([last] if last else []))


def selected(config: Config, dataset: Any, transform: data.Transform | None) -> data.Transform | None:
    """Return ``transform`` behind what takes images and labels out of a data set's dicts, where it gives dicts.

    Raises:
        ConfigError: colours are to be changed of images that do not begin at 0.
    """
    select = selection(dataset)
    if select is None:
        return transform
    if config.data.augment.color_jitter is not None:
        raise ConfigError(
            f"data.augment.color_jitter: it works on values from 0, and the images of {config.data.name} begin at -1; "
            "leave it out, or name a callable of your own (data.augment.callable)"
        )
    return data.Compose(select, transform) if transform else select


def mixing(config: Config, num_classes: int) -> data.Mix | None:
    """Return what mixes the samples of a whole batch, or None."""
    augment = config.data.augment
    if not (augment.mixup or augment.cutmix):
        return None
    return data.Mix(num_classes, augment.mixup, augment.cutmix)


def _augmentation(augment: Augment, top: float) -> list[data.Transform]:
    """What is asked for, geometry first, bytes as long as may be."""
    steps: list[data.Transform] = []
    if augment.random_resized_crop:
        steps.append(data.RandomResizedCrop(scale=(augment.random_resized_crop, 1.0)))
    if augment.crop_padding:
        steps.append(data.RandomCrop(padding=augment.crop_padding, mode=augment.crop_mode))
    if augment.flip:
        steps.append(data.HorizontalFlip())
    if augment.callable is not None:
        try:
            steps.append(data.by_path(augment.callable, augment.callable_per, **augment.callable_arguments))
        except (InputError, TypeError) as error:
            raise ConfigError(f"data.augment.callable: {error}") from error
    if augment.color_jitter is not None:
        amounts = dict(zip(("brightness", "contrast", "saturation", "hue"), augment.color_jitter, strict=False))
        steps.append(data.ColorJitter(**amounts, top=top))
    if augment.max_shift or augment.max_degrees or augment.max_scale:
        steps.append(data.ShiftRotate(augment.max_shift, augment.max_degrees, augment.max_scale))
    if augment.cutout:
        steps.append(data.Cutout(augment.cutout))
    return steps


def _top(last: data.Transform | None) -> float:
    """The largest value of the stored images."""
    return float(round(1 / getattr(last, "scale", _BYTE)))


def _bytes(dataset: Any) -> bool:
    return first_input(dataset).dtype == torch.uint8
