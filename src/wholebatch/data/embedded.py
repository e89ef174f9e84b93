"""Data sets that come with the package."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch

from wholebatch.core.errors import DataError, nearest
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.transform import Normalize

# Mean and standard deviation of the training part's pixels, divided by their largest value, 16.
DIGITS_MEAN, DIGITS_STD = 0.305, 0.377


def digits(split: str) -> ArrayDataset:
    """Return the handwritten digits: 1,797 images of 8 x 8 pixels, each 0 to 16, in ten classes.

    The split is fixed and stratified: 36 images of every class are the test part (360), the other 1,437 the training
    part, chosen once by a permutation of each class and stored with the images, so that no version of any
    library changes it. Both parts keep the source's order.

    ``inputs`` is uint8, (samples, 1, 8, 8); ``targets`` int64, (samples,); ``transform`` makes floats of mean about
    0 and deviation about 1. Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
    Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49 (CC BY 4.0).

    Args:
        split: "train" or "test".

    Raises:
        DataError: another split.

    >>> digits("train"), digits("test").classes[:3]
    (ArrayDataset(1437 samples: uint8[1437, 1, 8, 8], int64[1437]), ('0', '1', '2'))
    """
    if split not in ("train", "test"):
        raise DataError(
            f"digits has the splits 'train' and 'test', got {split!r}{nearest(str(split), ('train', 'test'))}"
        )
    with (
        (files("wholebatch.data") / "files" / "digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as npz,
    ):
        images, labels, test = npz["images"], npz["labels"], npz["test"]
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[test] = True
    if split == "train":
        chosen = ~chosen
    return ArrayDataset(
        torch.from_numpy(images[chosen]).unsqueeze(1),
        torch.from_numpy(labels[chosen].astype(np.int64)),
        classes=[str(digit) for digit in range(10)],
        transform=Normalize(DIGITS_MEAN, DIGITS_STD, scale=1 / 16),
    )
