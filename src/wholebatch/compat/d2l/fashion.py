"""Fashion-MNIST from IDX files, as a pair of torch's loaders; and the names of its classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wholebatch.data.idx import fashion_mnist_arrays

_LABELS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


class GreyImages(Dataset[Any]):
    """Grey images as floats from 0 to 1 and their labels; sample ``i`` is (1, height, width) and an int.

    Args:
        data: uint8 (samples, height, width).
        targets: int64 (samples,).
        size: (height, width) that every image is resized to when it is asked for, by Pillow's bilinear filter, as
            torchvision's ``Resize`` does; None leaves them.
    """

    def __init__(self, data: Tensor, targets: Tensor, size: tuple[int, int] | None = None) -> None:
        self.data = data
        self.targets = targets
        self.size = None if size == tuple(data.shape[1:]) else size
        self.classes = list(_LABELS)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.__getitems__([index])[0]
        return image, int(label)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Return several samples at once, which is what a ``DataLoader`` asks for."""
        chosen = torch.as_tensor(indices)
        images = self.data[chosen]
        if self.size is not None:
            height, width = self.size
            resized = [
                Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR) for one in images.numpy()
            ]
            images = torch.from_numpy(np.stack([np.asarray(one) for one in resized]))
        floats = images.unsqueeze(1).float().div_(255)
        return list(zip(floats.unbind(), self.targets[chosen].unbind(), strict=True))


def load_data_fashion_mnist(
    batch_size: int, resize: int | Sequence[int] | None = None, root: str | Path | None = None
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return loaders of Fashion-MNIST's training part, shuffled, and of its test part, in order.

    A batch is (X, y): float32 (n, 1, 28, 28) from 0 to 1, and int64 (n,). Nothing is downloaded: the IDX files are
    looked for as :func:`wholebatch.data.idx.fashion_mnist_folders` says. They are kept in memory, so that no worker
    processes are needed; the order is the one that the book's loaders have after the same ``torch.manual_seed``.

    Args:
        batch_size: samples of a batch; the last one holds the rest.
        resize: the length of the images' smaller side, or (height, width).
        root: a further folder to look into.

    Raises:
        DataError: the files are nowhere, or damaged; the message says where they were looked for.
    """
    train, test = (_images(split, resize, root) for split in ("train", "test"))
    return DataLoader(train, batch_size, shuffle=True), DataLoader(test, batch_size, shuffle=False)


def _images(split: str, resize: int | Sequence[int] | None, root: str | Path | None) -> GreyImages:
    images, labels = fashion_mnist_arrays(split, root)
    if not resize:
        return GreyImages(images, labels)
    height, width = images.shape[1:]
    if isinstance(resize, int):
        short = min(height, width)
        return GreyImages(images, labels, (resize * height // short, resize * width // short))
    return GreyImages(images, labels, (int(resize[0]), int(resize[-1])))


def get_fashion_mnist_labels(labels: Iterable[Any]) -> list[str]:
    """Return the names of classes given by number.

    >>> get_fashion_mnist_labels(torch.tensor([9, 0]))
    ['ankle boot', 't-shirt']
    """
    return [_LABELS[int(label)] for label in labels]


def get_dataloader_workers() -> int:
    """Return 4, the book's number of processes that read data."""
    return 4
