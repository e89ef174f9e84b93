"""A tiny ImageNet: three classes, as archives and unpacked, with the odd files that the real one has."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TENCH, KIT_FOX, TISSUE = "n01440764", "n02119789", "n15075141"  # labels 0, 278, 999; ILSVRC2012_ID 449, 1, 889
SIZES = ((40, 31), (24, 60), (33, 33), (90, 25))


@functools.cache
def encoded(number: int, size: tuple[int, int] = (40, 31), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def tar_of(files: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


class Tree:
    """What a folder for ImageNet can hold; ``train`` and ``val`` are the images by their paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synsets = (TENCH, KIT_FOX, TISSUE)
        self.train = {
            f"{synset}/{synset}_{number}.JPEG": encoded(10 * place + number, SIZES[number])
            for place, synset in enumerate(self.synsets)
            for number in range(4)
        }
        order = (KIT_FOX, TISSUE, TENCH, KIT_FOX, TENCH)
        self.val = {
            f"{synset}/ILSVRC2012_val_{number:08d}.JPEG": encoded(100 + number, SIZES[number % 4])
            for number, synset in enumerate(order, 1)
        }
        self.truth = "1\n889\n449\n1\n449\n"

    def train_archive(self, odd: Mapping[str, bytes] | None = None) -> Path:
        inner = {
            f"{synset}.tar": tar_of(
                {Path(path).name: data for path, data in self.train.items() if path.startswith(synset)}
            )
            for synset in self.synsets
        }
        path = self.root / "ILSVRC2012_img_train.tar"
        path.write_bytes(tar_of({**inner, **(odd or {})}))
        return path

    def val_archive(self) -> Path:
        path = self.root / "ILSVRC2012_img_val.tar"
        path.write_bytes(tar_of({Path(name).name: data for name, data in self.val.items()}))
        return path

    def devkit(self) -> Path:
        name = "ILSVRC2012_devkit_t12"
        files = {
            f"{name}/readme.txt": b"read me",
            f"{name}/data/ILSVRC2012_validation_ground_truth.txt": self.truth.encode(),
        }
        path = self.root / f"{name}.tar.gz"
        with tarfile.open(path, "w:gz") as tar:
            for inside, data in files.items():
                member = tarfile.TarInfo(inside)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path

    def unpack(self, train: str | None = "train", val: str | None = "val", flat: bool = False) -> Path:
        for folder, images in ((train, self.train), (val, self.val)):
            for path, data in images.items() if folder is not None else ():
                target = self.root / str(folder) / (Path(path).name if flat and images is self.val else path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        return self.root


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    root = tmp_path / "data"
    root.mkdir()
    return Tree(root)


@pytest.fixture
def encode():
    return encoded


@pytest.fixture
def tar():
    return tar_of
