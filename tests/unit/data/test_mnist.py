"""MNIST and Fashion-MNIST from IDX files that are made here, and from the real ones where they are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import wholebatch as wb
from wholebatch.core.errors import DataError
from wholebatch.data import registry
from wholebatch.data.idx import DEBIAN_FASHION_MNIST


def write(folder: Path, count: int = 7) -> np.ndarray:
    folder.mkdir(parents=True)
    images = np.random.default_rng(3).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = bytes(n % 10 for n in range(count))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + count.to_bytes(4, "big") + labels)
    return images


@pytest.mark.parametrize(
    ("name", "inside"),
    [("mnist", "."), ("mnist", "MNIST/raw"), ("fashion_mnist", "."), ("fashion_mnist", "FashionMNIST/raw")],
)
def test_read_by_name_wherever_the_files_lie(name: str, inside: str, tmp_path: Path) -> None:
    images = write(tmp_path / "data" / inside)
    found = registry.read(name, "train", root=str(tmp_path / "data"))
    assert torch.equal(found.inputs, torch.from_numpy(images)[:, None])
    assert found.targets.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert len(found.classes) == 10
    image, label = found[3]
    assert (image.dtype, image.shape, int(label)) == (torch.uint8, (1, 28, 28), 3)


def test_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mnist")
    monkeypatch.setenv("WHOLEBATCH_DATA", str(tmp_path))
    assert len(wb.data.mnist("test")) == 7


def test_what_is_missing_is_said_with_the_repair(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*Say data\.root with the folder"):
        wb.data.mnist("train", tmp_path)
    if not DEBIAN_FASHION_MNIST.exists():
        with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
            wb.data.fashion_mnist("train", tmp_path)
    with pytest.raises(DataError, match="splits are 'train' and 'test'"):
        wb.data.mnist("valid", tmp_path)


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    train, test = wb.data.fashion_mnist("train"), wb.data.fashion_mnist("test")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.targets.bincount().tolist() == [6000] * 10
    normal, _ = next(iter(wb.data.BatchLoader(train, 60_000, shuffle=False)))
    assert abs(float(normal.double().mean())) < 1e-3
    assert abs(float(normal.double().std()) - 1) < 1e-3
