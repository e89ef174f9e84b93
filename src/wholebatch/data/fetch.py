"""Samples of a data set, one by one, made into a batch: the same in this process and in any worker."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset, default_collate

from wholebatch.core import keys, tree
from wholebatch.core.errors import DataError, InputError
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.images import as_tensor
from wholebatch.data.imageset import ImageDataset, different_sizes

Collate = Callable[[list[Any]], Any]


class Fetch:
    """Makes a batch of the samples that it is given the numbers of.

    A data set may draw at random (as torchvision's transforms do) from the generators of torch, NumPy and Python: they
    are seeded for every sample by (seed, epoch, sample) and given back afterwards, so that a sample is the same
    whichever batch it is in and whoever fetches it. (Not so in a data set with ``__getitems__``, which gives many
    at once.) One that keys its own draws has ``keyed_samples(numbers, seed=, epoch=)`` and is asked by it. An image of
    Pillow becomes uint8 C×H×W.

    Args:
        dataset: map-style.
        collate: makes a batch of a list of samples.
        seed: of what the data set draws.
    """

    def __init__(self, dataset: Any, collate: Collate | None, seed: int) -> None:
        self.dataset, self.collate, self.seed = dataset, collate or default_collate, seed
        many = getattr(dataset, "__getitems__", None)
        self._many = callable(many) and type(dataset) is not Subset  # which only loops over its data set
        self._keyed = callable(getattr(dataset, "keyed_samples", None))
        self._draws = not isinstance(dataset, ImageDataset | ArrayDataset)

    def __call__(self, epoch: int, numbers: Sequence[int]) -> Any:
        """Return the batch of the samples ``numbers``; of none, a batch of no samples.

        Raises:
            DataError: a sample cannot be read (its number and file are named), or they make no batch.
        """
        if not len(numbers):
            return tree.cut(self(epoch, [0]), 0, 0, 1)
        samples = self._together(epoch, numbers) if self._many or self._keyed else self._singly(epoch, numbers)
        samples = [_with_tensors(sample) for sample in samples]
        try:
            return self.collate(samples)
        except (TypeError, RuntimeError) as error:
            raise DataError(self._no_batch(numbers, samples, error)) from error

    def _singly(self, epoch: int, numbers: Sequence[int]) -> list[Any]:
        samples = []
        with _generators_given_back(self._draws):
            for number in numbers:
                if self._draws:
                    _seed(keys.key(self.seed, "augment", epoch, number))
                try:
                    samples.append(self.dataset[number])
                except Exception as error:
                    raise DataError(self._unreadable(number, error)) from error
        return samples

    def _together(self, epoch: int, numbers: Sequence[int]) -> list[Any]:
        try:
            if self._keyed:
                return list(self.dataset.keyed_samples(list(numbers), seed=self.seed, epoch=epoch))
            return list(self.dataset.__getitems__(list(numbers)))
        except Exception as error:
            raise DataError(self._unreadable(numbers[0], error, len(numbers))) from error

    def _unreadable(self, number: int, error: Exception, count: int = 1) -> str:
        which = f"sample {number}" if count == 1 else f"one of {count} samples from {number} on"
        if isinstance(error, InputError):
            return f"{which} of {type(self.dataset).__name__}: {error}"
        file = self._file(number) if count == 1 else None
        reason = f"{type(error).__name__}: {error}"
        return f"{which} of {type(self.dataset).__name__}{f' ({file})' if file else ''} cannot be read: {reason}"

    def _file(self, number: int) -> str | None:
        """What a sample is called: by our own data sets, or in torchvision's list of files."""
        if isinstance(self.dataset, ImageDataset):
            return self.dataset.name(number)
        try:
            name = self.dataset.samples[number][0]
        except Exception:  # any object may be there
            return None
        return name if isinstance(name, str) else None

    def _no_batch(self, numbers: Sequence[int], samples: list[Any], error: Exception) -> str:
        images = [sample[0] for sample in samples if isinstance(sample, tuple | list) and sample]
        if len(images) == len(samples) and all(isinstance(image, Tensor) and image.ndim == 3 for image in images):
            for number, image in zip(numbers, images, strict=True):
                if image.shape != images[0].shape:
                    names = [self._file(one) or f"sample {one}" for one in (numbers[0], number)]
                    return different_sizes(names[0], images[0], names[1], image)
        return (
            f"samples of {type(self.dataset).__name__} could not be put into one batch: {error}; "
            "let the data set give tensors of one shape, or pass collate="
        )


def _with_tensors(sample: Any) -> Any:
    """``sample`` with Pillow's image, its first entry, as a tensor."""
    if isinstance(sample, tuple | list) and sample and isinstance(sample[0], Image.Image):
        image = sample[0] if sample[0].mode in ("L", "RGB") else sample[0].convert("RGB")
        return (as_tensor(image), *sample[1:])
    return sample


def _seed(key: int) -> None:
    torch.manual_seed(key)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)


@contextmanager
def _generators_given_back(draws: bool) -> Iterator[None]:
    if not draws:
        yield
        return
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
