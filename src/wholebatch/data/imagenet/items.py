"""The items: one dict per image."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wholebatch.core import keys
from wholebatch.data.imagenet.settings import Settings
from wholebatch.data.imagenet.view import view
from wholebatch.data.images import read_image

_CROP = 0x43524F50  # keeps these draws apart from those of other augmentations of the same (seed, epoch, sample)


class Items:
    """Images and what is known of them, by number.

    Args:
        folder: the tree.
        relpaths: paths of the images below it.
        synsets: of each image.
        labels: from a synset to its class's number.
        words: from a synset to what people call it.
        settings: how an image is read; without ``process_images`` its path stands in.
        random_crop: draw the place of the crop by (seed, epoch, number); else it is the centre.
    """

    def __init__(
        self,
        folder: Path,
        relpaths: Sequence[str],
        synsets: Sequence[str],
        labels: Mapping[str, int],
        words: Mapping[str, str],
        settings: Settings,
        random_crop: bool,
    ) -> None:
        self.folder, self.relpaths, self.synsets = folder, relpaths, synsets
        self.labels, self.words, self.settings, self.random_crop = labels, words, settings, random_crop
        self.seed, self.epoch = 0, 0  # of what is drawn where nobody says it

    def __len__(self) -> int:
        return len(self.relpaths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"there is no image {number}, there are {len(self)}")
        return self.keyed([number % len(self)], seed=self.seed, epoch=self.epoch)[0]

    def keyed(self, numbers: Sequence[int], *, seed: int, epoch: int) -> list[dict[str, Any]]:
        """Return the items ``numbers`` as they are in an epoch of a run with this seed."""
        places: list[tuple[float, float] | None] = [None] * len(numbers)
        if self.random_crop and self.settings.process_images:
            key = keys.key(seed, "augment", epoch, _CROP)
            draws = keys.uniform(key, torch.tensor(numbers, dtype=torch.int64), 2)
            places = [(down, right) for down, right in draws.tolist()]
        return [self._item(number, place) for number, place in zip(numbers, places, strict=True)]

    def _item(self, number: int, place: tuple[float, float] | None) -> dict[str, Any]:
        relpath, synset = self.relpaths[number], self.synsets[number]
        path = str(self.folder / relpath)
        image: Any = path
        if self.settings.process_images:
            image = view(read_image(path), self.settings.size, self.settings.crop, place, path)
        return {
            "image": image,
            "class_label": self.labels[synset],
            "human_label": self.words[synset],
            "synsets": synset,
            "relpath": relpath,
            "file_path_": path,
        }
