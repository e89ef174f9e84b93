"""What the tests of d2l's names share: figures that are closed again, and a folder laid out as the book's."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import wholebatch as wb


@pytest.fixture(autouse=True)
def no_figures_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context():
        yield
        pyplot.close("all")


def idx_bytes(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def write_book(raw: Path, train: int = 240, test: int = 90) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Digits of 28 x 28 pixels under Fashion-MNIST's file names, the training images packed."""
    raw.mkdir(parents=True)
    written = {}
    for split, prefix, count in (("train", "train", train), ("test", "t10k", test)):
        data = wb.data.digits(split)
        small = (data.inputs[:count, 0].numpy() * 15.9375).astype(np.uint8)
        images = np.stack(
            [np.asarray(Image.fromarray(one).resize((28, 28), Image.Resampling.BILINEAR)) for one in small]
        )
        labels = data.targets[:count].numpy()
        packed = gzip.compress(idx_bytes(images))
        if split == "train":
            (raw / f"{prefix}-images-idx3-ubyte.gz").write_bytes(packed)
        else:
            (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        written[split] = images, labels
    return written


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images and labels in ``../data/FashionMNIST/raw``, seen from the current folder."""
    written = write_book(tmp_path / "data" / "FashionMNIST" / "raw")
    (tmp_path / "chapter").mkdir()
    monkeypatch.chdir(tmp_path / "chapter")
    return written
