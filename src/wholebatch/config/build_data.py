"""From the group ``data`` of a configuration to data sets, and what a model is told about their samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wholebatch import data
from wholebatch.config.schema import Config
from wholebatch.core.errors import ConfigError, DataError, nearest
from wholebatch.core.processes import Alone
from wholebatch.data import registry
from wholebatch.data.select import selection


def check_data(config: Config) -> None:
    """Raise where the configuration names a data set or an option that does not exist; no data are read.

    Raises:
        ConfigError: the message names the nearest.
    """
    name = config.data.name
    try:
        registry.check_name(name)
        known = registry.options(name)
    except DataError as error:
        raise ConfigError(f"data.name={name}: {error}") from error
    for argument in config.data.arguments:
        if known is not None and argument not in known:
            hint = nearest(argument, known) or f"; it takes {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"data.{argument}: {name} does not take it{hint}")


def datasets(config: Config) -> tuple[Any, Any]:
    """Return the training and the test part: map-style data sets.

    Raises:
        DataError: they cannot be read, or the two parts are of different classes.
    """
    say = config.data
    train, test = training_data(config), registry.read(say.name, "test", say.root, **say.arguments)
    of_train, of_test = registry.classes_of(train), registry.classes_of(test)
    if of_train != of_test:
        raise DataError(f"the training part of {say.name} has the classes {of_train}, its test part {of_test}")
    return train, test


def training_data(config: Config) -> Any:
    """Return the training part alone.

    Raises:
        DataError: it cannot be read.
    """
    return registry.read(config.data.name, "train", config.data.root, **config.data.arguments)


def first_input(dataset: Any) -> Tensor:
    """Return the input of a data set's first sample: an image, C×H×W, or a text's tokens, int64, one axis.

    Raises:
        DataError: its samples are not (image, label) or (tokens, targets) of such tensors.
    """
    transform = selection(dataset) or data.Compose()
    loader = data.BatchLoader(dataset, 1, shuffle=False, transform=transform, group=Alone())  # not this one's part
    sample = next(iter(loader))
    inputs = sample[0] if isinstance(sample, tuple | list) and len(sample) > 1 else None
    if not isinstance(inputs, Tensor) or not (inputs.ndim == 4 or holds_tokens(inputs[0])):
        got = f"{type(sample).__name__}" if inputs is None else f"images of shape {tuple(inputs.shape[1:])}"
        raise DataError(
            f"{type(dataset).__name__} gives no samples (image C×H×W, label) or (tokens int64, targets): {got}"
        )
    return inputs[0]


def holds_tokens(sample: Tensor) -> bool:
    """Return whether a sample's input is a row of tokens, not an image."""
    return sample.ndim == 1 and sample.dtype == torch.int64


def known_of(dataset: Any, classes: int) -> dict[str, Any]:
    """Return what a model can be told about the data, by the names of :data:`wholebatch.models.FROM_DATA`."""
    first = first_input(dataset)
    if not holds_tokens(first):
        return known_of_images(classes, first.shape)
    known = {"num_classes": classes or None, "vocabulary": getattr(dataset, "vocabulary", None), "length": len(first)}
    return {name: value for name, value in known.items() if value is not None}


def known_of_images(classes: int, shape: Sequence[int]) -> dict[str, Any]:
    """Return what a model can be told about images of ``shape``, (C, H, W)."""
    return {"num_classes": classes, "in_channels": shape[0], "image_size": shape[-1]}


def expected_output(dataset: Any, targets: Any, classes: int) -> tuple[int, ...] | None:
    """Return how a model's output for one sample has to begin: (classes,), or (vocabulary, places) where every place of
    a text has a target; None where that is not known."""
    vocabulary = getattr(dataset, "vocabulary", None)
    if vocabulary is not None and not classes and isinstance(targets, Tensor) and targets.ndim == 2:
        return vocabulary, targets.shape[1]
    return (classes,) if classes else None


def as_pictures(images: Tensor, transform: data.Transform | None) -> list[Any]:
    """Return images that ``transform`` was applied to as arrays from 0 to 1, what normalising did being undone."""
    if isinstance(transform, data.Normalize):
        images = transform.undo(images)
    elif images.dtype == torch.uint8:
        images = images / 255
    else:  # floats of any range
        low, high = images.amin(), images.amax()
        images = (images - low) / (high - low).clamp(min=1e-12)
    return list(images.float().clamp(0, 1).cpu().numpy())
