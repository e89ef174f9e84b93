"""What the training and the validation part have in common: settings, names, labels, items."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from wholebatch.core.errors import DataError
from wholebatch.data.imagenet import settings
from wholebatch.data.imagenet.items import Items
from wholebatch.data.imagenet.names import imagenet_classes
from wholebatch.data.imagenet.places import cache_folder
from wholebatch.data.imagenet.unpack import say
from wholebatch.data.imagenet.unreadable import unreadable


class ImageNetBase(Dataset[dict[str, Any]]):
    """ImageNet (ILSVRC 2012) in the style of latent-diffusion and taming-transformers.

    An item is a dict:

    ==============  ===================================================================================
    key             what
    ==============  ===================================================================================
    ``image``       float32, (height, width, 3), from -1 to 1; without ``process_images`` the path
    ``class_label`` number of the class
    ``human_label`` its words: "tench, Tinca tinca"
    ``synsets``     its synset: "n01440764"
    ``relpath``     the file's path in the tree
    ``file_path_``  the whole path
    ==============  ===================================================================================

    Images are in the order of their paths in the tree. ``_prepare``, ``_prepare_synset_to_human``,
    ``_prepare_idx_to_synset``, ``_prepare_human_to_integer_label`` and ``_load`` run one after the other, and each may
    be overridden.

    Args:
        config: None, a dict or an OmegaConf node. Keys: ``size`` (256, the smaller side after resizing), ``crop_size``
            (``size``), ``random_crop`` (in training, else the centre), ``sub_indices`` (all classes; "0-9, 12", the
            ends of a range included), ``keep_orig_class_label`` (False: labels count the classes present; True: 0 to
            999), ``process_images`` (True), ``on_error`` ("raise"; "skip" decodes every image once and leaves those
            out that cannot be read). A group ``ImageNetTrain`` or ``ImageNetValidation`` holds keys for one part.
        process_images: False gives paths in place of images.
        data_root: the folder with the archives or the unpacked trees; without it, ``wholebatch/imagenet`` in the
            user's cache folder.

    Attributes:
        data: the items; without ``process_images`` the paths.
        targets: labels, int64, (images,).
        classes: a name per label.
        relpaths, abspaths, synsets, class_labels, human_labels: a list entry per image.
        synset2idx, idx2synset, synset2human, human2integer: of all 1,000 classes. ``"crane"`` names two; its number
            is the machine's, 517.
        skipped: paths of the images that ``on_error="skip"`` left out.
        root, datadir: the folder of the data, and the tree.

    Raises:
        ConfigError: an unknown key (the nearest is named), a value that cannot be used, a malformed range.
        DataError: something is missing (the message says how to get it), damaged, or refused.
    """

    batch_keys = ("image", "class_label")
    """The inputs and the targets, for a loss that is called ``loss(output, targets)``."""
    channels_last = True
    """Images are height x width x channels."""
    section = ""
    """The group of the configuration that is this part's alone."""

    def __init__(
        self, config: Any = None, process_images: bool = True, data_root: str | os.PathLike[str] | None = None
    ) -> None:
        self.config = settings.as_dict(config)
        self.data_root = data_root
        self.settings = settings.read(self.config, self.section)
        if not process_images:
            self.settings = replace(self.settings, process_images=False)
        self.process_images = self.settings.process_images
        self.keep_orig_class_label = self.settings.keep_orig_class_label
        self.skipped: list[str] = []
        self.root: Path
        self.datadir: Path
        self.relpaths: list[str]
        self._prepare()
        self._prepare_synset_to_human()
        self._prepare_idx_to_synset()
        self._prepare_human_to_integer_label()
        self._load()

    @property
    def random_crop(self) -> bool:
        """Whether the place of the crop is drawn."""
        return bool(self.settings.random_crop)

    def _prepare(self) -> None:
        """Find or unpack the images, and set ``root``, ``datadir`` and ``relpaths`` (all there are)."""
        raise NotImplementedError("use ImageNetTrain or ImageNetValidation, or override _prepare")

    def _prepare_synset_to_human(self) -> None:
        """Set what people call each synset."""
        self.synset2human = {row.synset: row.words for row in imagenet_classes()}

    def _prepare_idx_to_synset(self) -> None:
        """Set the order of the classes."""
        self.idx2synset = {number: row.synset for number, row in enumerate(imagenet_classes())}
        self.synset2idx = {synset: number for number, synset in self.idx2synset.items()}

    def _prepare_human_to_integer_label(self) -> None:
        """Set the number of each name; the last one's where two classes have one name."""
        self.human2integer = {self.synset2human[synset]: number for number, synset in self.idx2synset.items()}

    def _synset(self, relpath: str) -> str:
        """Return the synset of an image: the folder it is in."""
        return relpath.partition("/")[0]

    def _filter_relpaths(self, relpaths: Sequence[str]) -> list[str]:
        """Leave out the classes that are not asked for, and what cannot be read where that is to be skipped."""
        indices = self.settings.indices
        kept = list(relpaths)
        if indices is not None:
            wanted = {self.idx2synset[number] for number in indices}
            kept = [path for path in kept if self._synset(path) in wanted]
            there = len({self._synset(path) for path in kept})
            say(
                f"sub_indices={self.settings.sub_indices} (ends of ranges included) selects {len(indices)} classes; "
                f"there are {len(kept)} images of {there} of them in {self.datadir}"
            )
        if self.settings.on_error == "skip":
            bad = set(unreadable(self.datadir, kept, cache_folder()))
            self.skipped = sorted(bad)
            kept = [path for path in kept if path not in bad]
            say(f"{len(bad)} images that cannot be read are left out, {len(kept)} remain")
        return kept

    def _load(self) -> None:
        """Set the labels and the items."""
        self.relpaths = self._filter_relpaths(self.relpaths)
        if not self.relpaths:
            raise DataError(f"{self.datadir} holds no image that is asked for; look at sub_indices and data_root")
        self.synsets = [self._synset(path) for path in self.relpaths]
        present = sorted(set(self.synsets))
        for synset in present:
            if synset not in self.synset2idx:
                raise DataError(
                    f"{self.datadir} holds {synset}, which is none of the 1,000 classes of ILSVRC 2012; take it "
                    "out, or override _prepare_synset_to_human and _prepare_idx_to_synset to name it"
                )
        labels = {synset: number for number, synset in enumerate(present)}
        if self.keep_orig_class_label:
            present = [self.idx2synset[number] for number in sorted(self.idx2synset)]
            labels = self.synset2idx
        self.classes = _distinct([(self.synset2human[synset], synset) for synset in present])
        self.class_labels = [labels[synset] for synset in self.synsets]
        self.human_labels = [self.synset2human[synset] for synset in self.synsets]
        self.targets = torch.tensor(self.class_labels, dtype=torch.int64)
        self._items = Items(
            self.datadir, self.relpaths, self.synsets, labels, self.synset2human, self.settings, self.random_crop
        )
        self.data: Any = self._items if self.process_images else self.abspaths

    @property
    def abspaths(self) -> list[str]:
        """The whole path of each image."""
        return [str(self.datadir / path) for path in self.relpaths]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item; a random crop is the one of epoch 0, or of the one that ``set_epoch`` said, with seed 0."""
        return self._items[index]

    def keyed_samples(self, numbers: Sequence[int], *, seed: int, epoch: int) -> list[dict[str, Any]]:
        """Return the items ``numbers``, whose random crops depend on (seed, epoch, number) alone.

        A :class:`BatchLoader` asks so, with its own seed and epoch.
        """
        return self._items.keyed(numbers, seed=seed, epoch=epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch's crops ``dataset[i]`` gives, for loaders that are not this library's."""
        self._items.epoch = epoch

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of {len(set(self.synsets))} classes in {self.datadir})"


def _distinct(names: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Each name once: two that are the same get their synsets with them."""
    counts = Counter(name for name, _ in names)
    return tuple(name if counts[name] == 1 else f"{name} ({synset})" for name, synset in names)
