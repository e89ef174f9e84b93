"""Images that are decoded one by one: what the readers of folders, lists and tables have in common."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from wholebatch.core.errors import DataError
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.checks import on_error_policy, positive
from wholebatch.data.images import as_tensor
from wholebatch.data.transform import Transform
from wholebatch.data.unreadable import unreadable


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images; ``dataset[i]`` is ``(image, label)``, the image uint8 C×H×W with three channels.

    A reader says how sample ``i`` is decoded (:meth:`decode`) and what it is called (:meth:`name`).

    Args:
        labels: the class of every sample, a number into ``classes``.
        classes: names of the classes.
        size: the smaller side is resized to it, then the middle is cut out, size × size; None leaves images as
            they are, which is fine where all are of one size.
        on_error: "raise" or "skip". "skip" decodes every image once, now, and leaves out for good those that cannot
            be read, so that every process and every epoch has the same samples. What is found is kept in the
            cache folder. An image that is damaged later raises.

    Attributes:
        classes: as given, a tuple.
        targets: int64, (samples,).
        skipped: (name, reason) of every image left out.
        transform: what a :class:`BatchLoader` without a transform of its own applies to batches, or None.

    Raises:
        DataError: no samples, or an impossible ``size`` or ``on_error``.
    """

    def __init__(
        self, labels: Sequence[int], classes: Sequence[str], size: int | None = None, on_error: str = "raise"
    ) -> None:
        self.classes = tuple(classes)
        self.size = None if size is None else positive("size", size, "pixels")
        self.on_error = on_error_policy(on_error)
        self.transform: Transform | None = None
        self.skipped: tuple[tuple[str, str], ...] = ()
        self._labels = np.asarray(labels, dtype=np.int64)
        self._kept = np.arange(len(self._labels))
        if on_error == "skip":
            self._leave_out_unreadable()
        if not len(self._kept):
            raise DataError(f"{self.what()} holds no image that can be read")

    def what(self) -> str:
        """Return what messages call the data set."""
        return type(self).__name__

    def decode(self, place: int) -> Image.Image:
        """Return the image at ``place`` of all that were found, skipped ones counted.

        Raises:
            DataError: it cannot be read; it is named.
        """
        raise NotImplementedError

    def name_at(self, place: int) -> str:
        """Return what messages call the image at ``place`` of all that were found."""
        raise NotImplementedError

    def fingerprint(self) -> str | None:
        """Return a text that changes whenever the images may have, or None where nothing tells."""
        return None

    def name(self, index: int) -> str:
        """Return what messages call sample ``index``, usually its file."""
        return self.name_at(int(self._kept[index]))

    @property
    def targets(self) -> Tensor:
        """The labels, int64, (samples,)."""
        return torch.from_numpy(self._labels[self._kept])

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return ``(image, label)`` of sample ``index``.

        Raises:
            DataError: the image cannot be read; its file is named.
            IndexError: there is no such sample.
        """
        place = int(self._kept[index])
        image = self.decode(place)
        return as_tensor(image if self.size is None else middle(image, self.size)), int(self._labels[place])

    def in_memory(self) -> ArrayDataset:
        """Return all images decoded as one tensor, which a :class:`BatchLoader` indexes directly.

        Raises:
            DataError: an image cannot be read, or they are of different sizes.
        """
        first = self[0][0]
        images = torch.empty((len(self), *first.shape), dtype=torch.uint8)
        for index in range(len(self)):
            image, _ = self[index]
            if image.shape != first.shape:
                raise DataError(different_sizes(self.name(0), first, self.name(index), image))
            images[index] = image
        return ArrayDataset(images, self.targets, classes=self.classes, transform=self.transform)

    def _leave_out_unreadable(self) -> None:
        found = unreadable(self)
        self.skipped = tuple((self.name_at(place), reason) for place, reason in sorted(found.items()))
        self._kept = np.array([place for place in self._kept if int(place) not in found], dtype=np.int64)
        if found:
            more = "" if len(found) == 1 else f"; and {len(found) - 1} more"
            warnings.warn(
                f"{self.what()}: {len(found)} of {len(self._labels)} images cannot be read and are left out: "
                f"{self.skipped[0][1]}{more}",
                UserWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{type(self).__name__}({len(self)} images in {len(self.classes)} classes{skipped})"


def middle(image: Image.Image, size: int) -> Image.Image:
    """Return ``image`` with its smaller side resized to ``size`` and its middle cut out, size × size.

    >>> middle(Image.new("RGB", (30, 20)), 8).size
    (8, 8)
    """
    width, height = image.size
    smaller = min(width, height)
    if smaller != size:
        width, height = max(size, round(width * size / smaller)), max(size, round(height * size / smaller))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def different_sizes(one: str, first: Any, other: str, second: Any) -> str:
    """Return the message about two images that cannot be stacked, with both sizes (height × width)."""
    sizes = [" × ".join(map(str, image.shape[-2:])) for image in (first, second)]
    return (
        f"images of different sizes make no batch: {one} is {sizes[0]}, {other} is {sizes[1]} (height × width); "
        "say size=N, which resizes the smaller side and cuts the middle out"
    )
