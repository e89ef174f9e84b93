"""What a run's model says of image files: a class and its probability for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data.folder import walk
from wholebatch.data.imagefiles import shown
from wholebatch.data.images import read_image
from wholebatch.trained.opening import Opened, device_of

AT_ONCE = 64  # images of one forward pass


@dataclass(frozen=True)
class Prediction:
    """The likeliest class of a file and its probability, or why there is none."""

    file: str
    label: str | None
    probability: float | None
    reason: str | None = None  # where the file cannot be read


def image_files(paths: Iterable[str]) -> list[str]:
    """Return the files among ``paths``, and for every folder all image files below it, in the order of their names.

    Raises:
        DataError: a folder cannot be read, or has no image.
    """
    files: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        below = list(walk(path))
        if not below:
            raise DataError(f"there is no image in the folder {shown(path)}")
        files += below
    return files


def predict(run: Opened, files: Sequence[str]) -> Iterator[Prediction]:
    """Yield a prediction per file, in order; one that cannot be read is among them, with the reason.

    An image is turned into what the run was trained on: its channels, size and normalisation
    (:class:`wholebatch.trained.inputs.Inputs`). Probabilities are the softmax of the model's outputs, in float64.
    """
    mode = run.inputs.mode  # refused before a file is read
    device = device_of(run.settings)
    model = run.model.to(device).eval()
    for first in range(0, len(files), AT_ONCE):
        some = files[first : first + AT_ONCE]
        read = [_read(run, file, mode) for file in some]
        images = [image for image in read if isinstance(image, Tensor)]
        answers: Iterator[tuple[float, int]] = iter(())
        if images:
            with torch.inference_mode():
                outputs = model(run.inputs.normalized(torch.stack(images).to(device)))
            likeliest = outputs.double().softmax(1).max(1)
            answers = iter(zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True))
        for file, image in zip(some, read, strict=True):
            if isinstance(image, Tensor):
                probability, label = next(answers)
                yield Prediction(shown(file), run.inputs.classes[label], probability)
            else:
                yield Prediction(shown(file), None, None, image)


def _read(run: Opened, file: str, mode: str) -> Tensor | str:
    """The image, or why it cannot be read."""
    try:
        return run.inputs.of(read_image(file, shown(file), mode))
    except DataError as error:
        return str(error)
