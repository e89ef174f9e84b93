"""MNIST and Fashion-MNIST: 70,000 grey images of 28 × 28 pixels each, read from their IDX files wherever they lie.

Sources: Y. LeCun, C. Cortes, C. Burges, The MNIST database of handwritten digits, 1998; H. Xiao, K. Rasul, R. Vollgraf,
Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747.
"""

from __future__ import annotations

import os
from pathlib import Path

from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.idx import fashion_mnist_arrays, read_labelled
from wholebatch.data.transform import Normalize

_DIGITS = tuple("0123456789")
_CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def mnist(split: str, root: str | os.PathLike[str] | None = None) -> ArrayDataset:
    """Return MNIST: 60,000 training and 10,000 test images of handwritten digits.

    Args:
        split: "train" or "test".
        root: the folder with the four files, or one that has them in ``MNIST/raw``; None is ``$WHOLEBATCH_DATA``
            (itself, or ``mnist`` in it).

    Returns:
        ``inputs`` uint8, (samples, 1, 28, 28); ``targets`` int64; ``transform`` makes floats of mean about 0 and
        deviation about 1.

    Raises:
        DataError: the files are not there (the message says how to get them) or damaged.
    """
    place = Path(root if root is not None else os.environ.get("WHOLEBATCH_DATA", "."))
    folders = [place / "MNIST" / "raw", place / "mnist", place]
    repair = (
        "Say data.root with the folder that holds MNIST's four files (train-images-idx3-ubyte, train-labels-idx1-ubyte "
        "and the two of t10k, as they are or with .gz); fashion_mnist is a package of Debian and Ubuntu"
    )
    images, labels = read_labelled(split, folders, repair)
    return ArrayDataset(images[:, None], labels, classes=_DIGITS, transform=Normalize(0.1307, 0.3081))


def fashion_mnist(split: str, root: str | os.PathLike[str] | None = None) -> ArrayDataset:
    """Return Fashion-MNIST: 60,000 training and 10,000 test images of clothes in ten classes.

    Args:
        split: "train" or "test".
        root: the folder with the four files, or one that has them in ``FashionMNIST/raw``. They are also looked for in
            ``$WHOLEBATCH_DATA`` and where Debian's package ``dataset-fashion-mnist`` puts them.

    Returns:
        As :func:`mnist`.

    Raises:
        DataError: the files are not there (the message says how to get them) or damaged.
    """
    place = root if root is not None else os.environ.get("WHOLEBATCH_DATA")
    images, labels = fashion_mnist_arrays(split, None if place is None else Path(place))
    return ArrayDataset(images[:, None], labels, classes=_CLOTHES, transform=Normalize(0.2860, 0.3530))
