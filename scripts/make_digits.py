"""Make src/wholebatch/data/files/digits.npz from scikit-learn's copy of the digits: ``python scripts/make_digits.py``.

scikit-learn is needed for this alone and is no dependency. The test part is the first 36 of a permutation
of each class, drawn by the key (0, "split", class); its indices are stored, so that the split never changes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from wholebatch.core import keys

TARGET = Path(__file__).parents[1] / "src" / "wholebatch" / "data" / "files" / "digits.npz"
TEST_PER_CLASS = 36


def test_part(labels: np.ndarray) -> np.ndarray:
    """Return the sorted indices of the test part: TEST_PER_CLASS of every class."""
    parts = []
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        order = torch.randperm(len(members), generator=keys.generator(0, "split", digit)).numpy()
        parts.append(members[order[:TEST_PER_CLASS]])
    return np.sort(np.concatenate(parts))


def main() -> None:
    """Write the file and say what is in it."""
    source = load_digits()
    images, labels = source.images.astype(np.uint8), source.target.astype(np.uint8)
    if not np.array_equal(images, source.images) or images.max() > 16:
        raise SystemExit("the source's pixels are no whole numbers from 0 to 16")
    test = test_part(labels).astype(np.int16)
    train = np.setdiff1d(np.arange(len(labels)), test)
    np.savez_compressed(TARGET, images=images, labels=labels, test=test)
    pixels = images[train] / 16
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes, {len(train)} train, {len(test)} test")
    print(f"training part: mean {pixels.mean():.4f}, standard deviation {pixels.std():.4f}")


if __name__ == "__main__":
    main()
