"""Data sets of Hugging Face: an object, parquet files, a folder that ``save_to_disk`` wrote, or a name on the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from wholebatch.core.errors import DataError, InputTypeError, nearest
from wholebatch.data.imagefiles import shown
from wholebatch.data.images import read_image
from wholebatch.data.imageset import ImageDataset
from wholebatch.data.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, ParquetImages, parquet_files


def hugging_face(
    source: Any,
    split: str | None = None,
    on_error: str = "raise",
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
) -> ImageDataset:
    """Return the labelled images of a Hugging Face data set.

    Args:
        source: a ``datasets.Dataset``, a dict of them by split, the path of parquet files or of a folder of them
            (read without ``datasets``), of a folder that ``save_to_disk`` wrote, or a name on the Hub such as
            "uoft-cs/cifar10", which is downloaded.
        split: which part, "train" or "test"; other parts by their own names. None is everything in a file or object.
        on_error, size: see :class:`wholebatch.data.imageset.ImageDataset`.
        image, label: the columns; those that are called so (``img``, ``image``; ``label``, …), if none.

    Raises:
        DataError: it is not found, has no such part or column, or needs a library that is not installed.
        InputTypeError: ``source`` is none of these.
    """
    if not isinstance(source, str | os.PathLike):
        return HubImages(_part(source, split), image, label, size, on_error)
    path = Path(os.path.expanduser(os.fspath(source)))
    if not path.exists():
        if path.suffix == ".parquet" or path.is_absolute() or os.fspath(source).count("/") != 1:
            raise DataError(f"there is no {shown(path)}; name a parquet file, a folder of them, or a set of the Hub")
        return HubImages(_download(os.fspath(source), split), image, label, size, on_error)
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        saved = _datasets(f"{shown(path)} was written by save_to_disk, and").load_from_disk(str(path))
        return HubImages(_part(saved, split), image, label, size, on_error)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet")) if split is None else _files(path, split)
    if not files:
        part = "" if split is None else f" of the part {split!r} (such as {split}-00000-of-00001.parquet)"
        raise DataError(f"{shown(path)} holds no parquet file{part}")
    return ParquetImages(files, image, label, None, size, on_error)


class HubImages(ImageDataset):
    """Labelled images of a ``datasets.Dataset``.

    Args:
        dataset: the data set, with a column of images and one of labels.
        image, label: the columns; found by their names and features, if none.
        size, on_error: see :class:`wholebatch.data.imageset.ImageDataset`.

    Raises:
        DataError: there are no such columns.
        InputTypeError: it is no such data set.
    """

    def __init__(
        self,
        dataset: Any,
        image: str | None = None,
        label: str | None = None,
        size: int | None = None,
        on_error: str = "raise",
    ) -> None:
        names = getattr(dataset, "column_names", None)
        if not isinstance(names, list) or not hasattr(dataset, "features"):
            raise InputTypeError(f"expected a datasets.Dataset, got {type(dataset).__name__}; or give a path")
        self.dataset = dataset
        self.image_column = _column(names, image, IMAGE_COLUMNS, "image")
        self.label_column = _column(names, label, LABEL_COLUMNS, "label")
        labels = np.asarray(dataset[self.label_column][:])
        if labels.dtype.kind not in "iu":
            raise DataError(f"column {self.label_column!r} is of {labels.dtype}, expected whole numbers")
        said = getattr(dataset.features[self.label_column], "names", None)
        classes = said or [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
        super().__init__(labels.tolist(), classes, size, on_error)

    def name_at(self, place: int) -> str:
        """Return the row."""
        return f"image {place} of the data set"

    def decode(self, place: int) -> Image.Image:
        """Return the image in row ``place``."""
        try:
            found = self.dataset[place][self.image_column]
        except Exception as error:  # whatever its own decoder raises
            raise DataError(f"{self.name_at(place)} cannot be read: {error}") from error
        if isinstance(found, Image.Image):
            return ImageOps.exif_transpose(found).convert("RGB")
        content = found.get("bytes") if isinstance(found, Mapping) else found
        if not isinstance(content, bytes):
            raise DataError(f"{self.name_at(place)} is a {type(found).__name__}, no image")
        return read_image(content, self.name_at(place))

    def fingerprint(self) -> str | None:
        """Return the data set's own."""
        return getattr(self.dataset, "_fingerprint", None)


def _files(path: Path, split: str) -> list[Path]:
    found = parquet_files(path, split)
    if not found and split == "test":
        return parquet_files(path, "validation")
    return found


def _part(source: Any, split: str | None) -> Any:
    if not isinstance(source, Mapping):
        return source
    name = "validation" if split == "test" and split not in source else split
    if name not in source:
        hint = nearest(str(split), source) or f"; it has {', '.join(map(str, source))}"
        raise DataError(f"the data set has no part {split!r}{hint}")
    return source[name]


def _column(names: list[str], asked: str | None, usual: Sequence[str], kind: str) -> str:
    found = asked if asked in names else next((name for name in usual if name in names), None)
    if found is None or (asked is not None and asked not in names):
        hint = nearest(asked or "", names) or f"; it has {', '.join(names)}"
        raise DataError(f"the data set has no column {asked or ' or '.join(usual)!r} for the {kind}{hint}")
    return found


def _datasets(why: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{why} needs the library datasets: pip install 'wholebatch[hf]'") from error
    return datasets


def _download(name: str, split: str | None) -> Any:
    library = _datasets(f"{name} is no file here, and a data set of the Hub")
    try:
        return _part(library.load_dataset(name), split)
    except DataError:
        raise
    except Exception as error:  # of the network, the Hub, or the disk
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} could not be had from the Hub: {reason:.300}") from error
