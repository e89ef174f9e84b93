"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32 × 32 pixels, in any of the layouts that they come in.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wholebatch.core.errors import DataError, nearest
from wholebatch.data import cache
from wholebatch.data.archive import read_file, read_members
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.imagefiles import shown
from wholebatch.data.parquet import ParquetImages, parquet_files
from wholebatch.data.pickled import read_pickle
from wholebatch.data.split import SPLITS
from wholebatch.data.transform import Normalize

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Kind:
    """What differs between the two. Mean and deviation are those of the training images' channels, 0 to 1."""

    name: str
    hub: str
    classes: int
    python: dict[str, tuple[str, ...]]
    binary: dict[str, tuple[str, ...]]
    python_names: tuple[str, str]  # of the file with the classes, and the key in it
    binary_names: str
    label_key: str
    label_bytes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_TEN = _Kind(
    name="cifar10",
    hub="uoft-cs/cifar10",
    classes=10,
    python={"train": tuple(f"data_batch_{part}" for part in range(1, 6)), "test": ("test_batch",)},
    binary={"train": tuple(f"data_batch_{part}.bin" for part in range(1, 6)), "test": ("test_batch.bin",)},
    python_names=("batches.meta", "label_names"),
    binary_names="batches.meta.txt",
    label_key="labels",
    label_bytes=1,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)
_HUNDRED = _Kind(
    name="cifar100",
    hub="uoft-cs/cifar100",
    classes=100,
    python={"train": ("train",), "test": ("test",)},
    binary={"train": ("train.bin",), "test": ("test.bin",)},
    python_names=("meta", "fine_label_names"),
    binary_names="fine_label_names.txt",
    label_key="fine_labels",
    label_bytes=2,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
)
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10(split: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> ArrayDataset:
    """Return CIFAR-10: 50,000 training and 10,000 test images in ten classes.

    Args:
        split: "train" or "test".
        root: a folder with one of the layouts, or an archive: the original python version (``cifar-10-python.tar.gz``,
            or unpacked), the binary one (``cifar-10-binary.tar.gz``), or the Hub's parquet files (``train-*.parquet``;
            extra ``hf``). None is ``$WHOLEBATCH_DATA``; a folder ``cifar10`` in it is found.
        download: get it from the Hub where it is not found (extra ``hf``); kept in the Hub's own cache.

    Returns:
        ``inputs`` uint8, (samples, 3, 32, 32); ``targets`` int64; ``transform`` makes floats of mean about 0 and
        deviation about 1. Images that had to be decoded are kept in the cache folder, and mapped from there.

    Raises:
        DataError: it is not found (the message says what was looked for), or damaged.
    """
    return _read(_TEN, split, root, download)


def cifar100(split: str, root: str | os.PathLike[str] | None = None, *, download: bool = False) -> ArrayDataset:
    """Return CIFAR-100: 50,000 training and 10,000 test images in a hundred classes (the fine labels).

    The arguments and the result are those of :func:`cifar10`; the archives are ``cifar-100-python.tar.gz`` and
    ``cifar-100-binary.tar.gz``.

    Raises:
        DataError: it is not found (the message says what was looked for), or damaged.
    """
    return _read(_HUNDRED, split, root, download)


def _read(kind: _Kind, split: str, root: str | os.PathLike[str] | None, download: bool) -> ArrayDataset:
    if split not in SPLITS:
        raise DataError(f"{kind.name} has the splits 'train' and 'test', got {split!r}{nearest(str(split), SPLITS)}")
    named = root if root is not None else os.environ.get("WHOLEBATCH_DATA")
    place = None if named is None else Path(os.path.expanduser(os.fspath(named)))
    found = None if place is None else _find(kind, place, split)
    if found is None and download:
        return _dataset(kind, *_downloaded(kind, split))
    if found is None:
        raise DataError(_missing(kind, place))
    return _dataset(kind, *found())


def _dataset(kind: _Kind, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> ArrayDataset:
    return ArrayDataset(images, labels, classes=classes, transform=Normalize(kind.mean, kind.std))


Reader = Callable[[], tuple[np.ndarray, np.ndarray, list[str]]]


def _find(kind: _Kind, place: Path, split: str) -> Reader | None:
    """What reads the first layout that is found at ``place`` or in the folders of it that are usual."""
    if place.is_file():
        return lambda: _of_archive(kind, place, split)
    long = f"cifar-{kind.classes}"
    for folder in (place, place / kind.name, place / long):
        for inner in (folder, folder / f"{long}-batches-py", folder / f"{long}-python"):
            if (inner / kind.python[split][0]).is_file() and (inner / kind.python_names[0]).is_file():
                return lambda inner=inner: _of_folder(kind, inner, split, kind.python)  # type: ignore[misc]
        for inner in (folder, folder / f"{long}-batches-bin", folder / f"{long}-binary"):
            if (inner / kind.binary[split][0]).is_file():
                return lambda inner=inner: _of_folder(kind, inner, split, kind.binary)  # type: ignore[misc]
        for name in (f"{long}-python.tar.gz", f"{long}-binary.tar.gz"):
            if (folder / name).is_file():
                return lambda archive=folder / name: _of_archive(kind, archive, split)  # type: ignore[misc]
        for inner in (folder, folder / "data", folder / "plain_text", folder / kind.name):
            files = parquet_files(inner, split) if inner.is_dir() and any(inner.glob("*.parquet")) else []
            if files:
                return lambda files=files: _of_parquet(kind, files)  # type: ignore[misc]
    return None


def _of_folder(
    kind: _Kind, folder: Path, split: str, layout: dict[str, tuple[str, ...]]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names = kind.python_names[0] if layout is kind.python else kind.binary_names
    wanted = [*layout[split], *([names] if (folder / names).is_file() else [])]
    return _of_members(kind, shown(folder), {name: read_file(folder / name) for name in wanted}, split)


def _of_archive(kind: _Kind, path: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    names = {*kind.python[split], *kind.binary[split], kind.python_names[0], kind.binary_names}
    return _of_members(kind, shown(path), read_members(path, names), split)


def _of_members(
    kind: _Kind, where: str, files: dict[str, bytes], split: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, labels and classes of the original files, by their names."""
    binary = kind.binary[split][0] in files
    wanted = (kind.binary if binary else kind.python)[split]
    missing = [name for name in wanted if name not in files]
    if missing:
        raise DataError(f"{where} is no {kind.name}, or not all of it: there is no {missing[0]}")
    read = _record_file if binary else _pickle_file
    parts = [read(kind, f"{where}/{name}", files[name]) for name in wanted]
    labels = np.concatenate([part[1] for part in parts])
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= kind.classes:
        raise DataError(f"{where} is damaged: labels are 0 to {kind.classes - 1}, found {sorted({*labels.tolist()})}")
    images = np.concatenate([part[0] for part in parts]).reshape(-1, 3, 32, 32)
    return images, labels, _names(kind, where, files)


def _pickle_file(kind: _Kind, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    value = read_pickle(content, name)
    images = value.get("data") if isinstance(value, dict) else None
    labels = value.get(kind.label_key) if isinstance(value, dict) else None
    fits = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2
    if not fits or images.shape[1] != PIXELS or not _whole(labels) or len(labels) != len(images):  # type: ignore
        raise DataError(f"{name} is no part of {kind.name}: expected data, uint8 (n, {PIXELS}), and n {kind.label_key}")
    return images, np.asarray(labels, dtype=np.int64)  # type: ignore[return-value]


def _whole(labels: Any) -> bool:
    return isinstance(labels, list) and all(type(label) is int and abs(label) < 1000 for label in labels)


def _record_file(kind: _Kind, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    record = kind.label_bytes + PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{name} is no part of {kind.name}, or cut off: {len(content)} bytes are no records of {record}"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    return rows[:, kind.label_bytes :], rows[:, kind.label_bytes - 1].astype(np.int64)


def _names(kind: _Kind, where: str, files: dict[str, bytes]) -> list[str]:
    names: Any = None
    if kind.python_names[0] in files:
        value = read_pickle(files[kind.python_names[0]], f"{where}/{kind.python_names[0]}")
        names = value.get(kind.python_names[1]) if isinstance(value, dict) else None
        names = names if isinstance(names, list | tuple) else []
        names = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]
    elif kind.binary_names in files:
        names = files[kind.binary_names].decode("utf-8", "replace").split()
    if names is None:
        return list(_CLASSES) if kind is _TEN else [str(number) for number in range(kind.classes)]
    if len(names) != kind.classes:
        raise DataError(f"{where} is damaged: it names {len(names)} classes, expected {kind.classes}")
    return names


def _of_parquet(kind: _Kind, files: list[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images decoded once and kept: 50,000 take ten seconds or so."""
    data = ParquetImages(files, label="fine_label" if kind is _HUNDRED else None)
    classes = list(data.classes)
    if len(classes) != kind.classes:
        raise DataError(f"{shown(files[0])} is no {kind.name}: it has {len(classes)} classes, not {kind.classes}")
    if kind is _TEN and classes == [str(number) for number in range(10)]:
        classes = list(_CLASSES)
    name = cache.key(kind.name, data.fingerprint())
    kept = cache.load_arrays(name, {"images": (len(data), 3, 32, 32), "labels": (len(data),)})
    if kept is not None:
        return kept["images"], kept["labels"], classes
    whole = data.in_memory()
    images, labels = whole.inputs.numpy(), whole.targets.numpy()
    if images.shape[1:] != (3, 32, 32):
        raise DataError(f"{shown(files[0])} is no {kind.name}: its images are {images.shape[1:]}, not (3, 32, 32)")
    cache.store_arrays(name, {"images": images, "labels": labels})
    return images, labels, classes


def _downloaded(kind: _Kind, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    from wholebatch.data.huggingface import hugging_face

    label = "fine_label" if kind is _HUNDRED else "label"
    whole = hugging_face(kind.hub, split, image="img", label=label).in_memory()
    return whole.inputs.numpy(), whole.targets.numpy(), list(whole.classes or ())


def _missing(kind: _Kind, place: Path | None) -> str:
    long = f"cifar-{kind.classes}"
    where = (
        "no folder was named, and $WHOLEBATCH_DATA is not set" if place is None else f"{shown(place)} does not have it"
    )
    return (
        f"{kind.name} was not found: {where}; expected {long}-python.tar.gz or {long}-binary.tar.gz (from "
        "https://www.cs.toronto.edu/~kriz/cifar.html), what is in one of them, or the Hub's train-*.parquet; "
        "say root=FOLDER (data.root=FOLDER), or download=true (needs a network and: pip install 'wholebatch[hf]')"
    )
