"""A run's model with the weights of its newest checkpoint, and its test data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from wholebatch import config, saved
from wholebatch.checkpoint import load_plain_state
from wholebatch.config.build import Parts, build, make_model
from wholebatch.config.build_data import known_of_images
from wholebatch.config.schema import Config
from wholebatch.core.errors import RunFolderError
from wholebatch.core.url import Url
from wholebatch.data import BatchLoader, Compose
from wholebatch.trained.inputs import NAME, Inputs, inputs_of

_AT_ONCE = 512  # samples


@dataclass(frozen=True)
class Opened:
    """A run's model, in evaluation mode, and what it takes."""

    settings: Config
    model: nn.Module
    inputs: Inputs


def opened(folder: Path | Url) -> Opened:
    """Return the model of a run; its data are asked only where the run does not say what its model takes.

    Raises:
        RunFolderError: the folder is no run, or its checkpoints are missing, damaged, or of another model.
        DataError: the model takes no images.
    """
    settings = config.load_run(folder)
    kept = folder / NAME
    if kept.is_file():
        inputs = Inputs.from_json(kept.read_bytes().decode("utf-8", "replace"), str(kept))
        model = make_model(settings, known_of_images(len(inputs.classes), inputs.shape))
    else:
        parts = build(settings)
        inputs, model = inputs_of(parts), parts.model
    fill(model, folder, settings)
    return Opened(settings, model.eval(), inputs)


def opened_with_data(folder: Path | Url, overrides: Sequence[str] = ()) -> tuple[Config, Parts]:
    """Return the settings of a run and all that they build, the model with the run's newest weights.

    Raises:
        RunFolderError: as for :func:`opened`.
        DataError: the data cannot be used.
    """
    settings = config.load_run(folder, overrides)
    parts = build(settings)
    fill(parts.model, folder, settings)
    return settings, parts


def fill(model: nn.Module, folder: Path | Url, settings: Config) -> None:
    """Load the newest weights of a run into ``model``.

    Raises:
        RunFolderError: there are none, or they are of another model.
    """
    weights = saved.newest(folder)
    try:
        load_plain_state(model, weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()[:40])
        raise RunFolderError(f"the run {folder} does not fit the model {settings.model.name}: {reason}") from error


def evaluation_loader(settings: Config, parts: Parts) -> BatchLoader:
    """Return the test data, as many at once as training has; without gradients a few hundred are no matter."""
    size = settings.resolved_micro_batch()
    at_once = min(settings.sizes().first, _AT_ONCE) if size == "auto" else int(size)
    transform = parts.test_transform or Compose()
    return BatchLoader(parts.test_data, at_once, shuffle=False, transform=transform, workers=settings.workers)


def device_of(settings: Config) -> str:
    """Return the device to use; "auto" is the one that training takes: a GPU where there is one."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if torch.cuda.is_available() else "cpu"
