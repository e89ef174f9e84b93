"""What a run's model takes: images of one shape, normalised; and what its outputs are called.

A run keeps it as ``inputs.json``, so that its model can be used where its data are not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from wholebatch.config.build import Parts
from wholebatch.config.build_data import first_input
from wholebatch.core.errors import DataError, RunFolderError
from wholebatch.data import Normalize
from wholebatch.data.images import as_tensor

NAME = "inputs.json"

_MODES = {1: "L", 3: "RGB"}  # Pillow's colour mode by number of channels


@dataclass(frozen=True)
class Inputs:
    """Images as a model takes them.

    Attributes:
        shape: channels, height and width.
        mean: subtracted from values between 0 and 1, one number or one per channel.
        std: divided by, likewise.
        classes: names of the outputs, in order.
    """

    shape: tuple[int, int, int]
    mean: float | list[float]
    std: float | list[float]
    classes: tuple[str, ...]

    @property
    def mode(self) -> str:
        """Pillow's colour mode of such an image.

        Raises:
            DataError: none has so many channels.
        """
        if self.shape[0] not in _MODES:
            raise DataError(f"the model takes images of {self.shape[0]} channels, files have 1 or 3")
        return _MODES[self.shape[0]]

    def of(self, image: Image.Image) -> Tensor:
        """Return an image in :attr:`mode` as the run's own data are: uint8 C×H×W.

        It is resized so that it just covers height × width, and the middle is cut out, as the readers do it.
        """
        return as_tensor(covering(image, self.shape[1], self.shape[2]))

    def normalized(self, images: Tensor) -> Tensor:
        """Return uint8 images, (N, C, H, W), as float32 for the model."""
        return Normalize(self.mean, self.std).apply(images)

    def to_json(self) -> str:
        """Return the text of ``inputs.json``."""
        values = {"shape": self.shape, "mean": self.mean, "std": self.std, "classes": self.classes}
        return (
            "{\n" + ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()) + "\n}\n"
        )

    @classmethod
    def from_json(cls, text: str, name: str) -> Inputs:
        """Return what :meth:`to_json` wrote; ``name`` is what errors call it.

        Raises:
            RunFolderError: it is no such text.
        """
        try:
            values = json.loads(text)
            channels, height, width = (int(length) for length in values["shape"])
            made = cls((channels, height, width), values["mean"], values["std"], tuple(map(str, values["classes"])))
            made.normalized(torch.zeros((1, *made.shape), dtype=torch.uint8))
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise RunFolderError(f"{name} is damaged: {type(error).__name__}: {error}") from None
        return made


def inputs_of(parts: Parts) -> Inputs:
    """Return what the model of ``parts`` takes.

    Raises:
        DataError: its data are no images, or something is done to them that is more than a mean and a deviation.
    """
    image, transform = first_input(parts.train_data), parts.test_transform
    if image.ndim != 3:
        raise DataError(f"the model of this run takes no images; its inputs have the shape {tuple(image.shape)}")
    channels, height, width = image.shape
    if isinstance(transform, Normalize):
        mean, std = _plain(transform.mean), _plain(transform.std)
    elif transform is None and image.is_floating_point() and image.amin() >= 0 and image.amax() <= 1:
        mean, std = 0.0, 1.0
    else:
        what = f"{image.dtype} from {image.amin():g} to {image.amax():g}" if transform is None else repr(transform)
        raise DataError(f"how a file becomes an input of this model is not known: its data are {what:.80}")
    return Inputs((channels, height, width), mean, std, parts.classes)


def covering(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return the middle of ``image``, height × width, after resizing it so that it just covers that.

    >>> covering(Image.new("RGB", (30, 20)), 8, 8).size
    (8, 8)
    """
    if image.width * height <= image.height * width:
        new = width, max(height, round(image.height * width / image.width))
    else:
        new = max(width, round(image.width * height / image.height)), height
    if new != image.size:
        image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - width) // 2, (new[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def _plain(value: Any) -> float | list[float]:
    return [float(number) for number in value] if isinstance(value, list | tuple) else float(value)
