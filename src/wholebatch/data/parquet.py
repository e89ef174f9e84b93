"""Images in parquet files, as the Hub lays data sets out: a column of encoded images and one of labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wholebatch.core.errors import DataError, nearest
from wholebatch.data import cache
from wholebatch.data.imagefiles import shown
from wholebatch.data.images import read_image
from wholebatch.data.imageset import ImageDataset

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label", "target")


class ParquetImages(ImageDataset):
    """Labelled images in parquet files, decoded when asked for.

    Args:
        paths: the files, read one after the other.
        image: the column of images (``{"bytes": …}`` as the Hub has it, or bytes); the one that is called so, if none.
        label: the column of labels, whole numbers; likewise.
        classes: names of the classes; those that the files say, else the numbers.
        size, on_error: see :class:`wholebatch.data.imageset.ImageDataset`.

    Raises:
        DataError: pyarrow is not installed, a file is missing or damaged, or there are no such columns.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        image: str | None = None,
        label: str | None = None,
        classes: Sequence[str] | None = None,
        size: int | None = None,
        on_error: str = "raise",
    ) -> None:
        self.paths = [os.path.abspath(path) for path in paths]
        tables = [_table(path, image, label) for path in self.paths]
        self.label_column = tables[0][1]
        self._images = [part for images, _, _, _ in tables for part in images]
        self._starts = np.cumsum([0, *(len(part) for part in self._images)])
        labels = np.concatenate([numbers for _, _, numbers, _ in tables])
        if len(labels) and labels.min() < 0:
            raise DataError(f"{shown(self.paths[0])}: the labels in {self.label_column!r} hold {labels.min()}")
        said = tables[0][3] if classes is None else list(classes)
        names = [str(number) for number in range(int(labels.max(initial=-1)) + 1)] if said is None else said
        if len(labels) and labels.max() >= len(names):
            raise DataError(f"{shown(self.paths[0])}: label {labels.max()}, but only {len(names)} classes")
        super().__init__(labels.tolist(), names, size, on_error)

    def what(self) -> str:
        """Return the first file."""
        return shown(self.paths[0]) if self.paths else type(self).__name__

    def name_at(self, place: int) -> str:
        """Return the file and the row."""
        return f"image {place} of {self.what()}"

    def decode(self, place: int) -> Image.Image:
        """Return the image in row ``place``."""
        part = int(np.searchsorted(self._starts, place, side="right")) - 1
        content = self._images[part][place - int(self._starts[part])].as_py()
        if isinstance(content, dict):
            content = content.get("bytes")
        if not content:
            raise DataError(f"{self.name_at(place)} is empty")
        return read_image(content, self.name_at(place))

    def fingerprint(self) -> str | None:
        """Return a text of the files' names, sizes and times."""
        return cache.stamp(self.paths)


def parquet_files(folder: Path, split: str) -> list[Path]:
    """Return the parquet files of a split below ``folder``: ``train-00000-of-00001.parquet``, ``train/0.parquet``."""
    found = sorted(folder.rglob("*.parquet"))
    return [file for file in found if file.name.lower().startswith(split) or file.parent.name.lower() == split]


def _table(path: str, image: str | None, label: str | None) -> tuple[list[Any], str, np.ndarray, list[str] | None]:
    """The chunks of the image column, the label column's name, its numbers, and the classes that the file says."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"parquet files such as {shown(path)} need pyarrow, which comes with: pip install 'wholebatch[hf]'"
        ) from error
    try:
        names = pyarrow.parquet.read_schema(path).names
        image = _column(path, names, image, IMAGE_COLUMNS, "image")
        label = _column(path, names, label, LABEL_COLUMNS, "label")
        table = pyarrow.parquet.read_table(path, columns=[image, label])
        numbers = table.column(label).to_numpy()
        if numbers.dtype.kind not in "iu":
            raise DataError(f"{shown(path)}: column {label!r} is of {numbers.dtype}, expected whole numbers")
        kind = table.column(image).type
        if not (pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
            raise DataError(f"{shown(path)}: column {image!r} is of {kind}, expected encoded images")
        return list(table.column(image).chunks), label, numbers, _classes(table.schema.metadata, label)
    except FileNotFoundError:
        raise DataError(f"there is no file {shown(path)}") from None
    except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{shown(path)} is no parquet file, or is damaged: {' '.join(str(error).split())}") from error


def _column(path: str, names: list[str], asked: str | None, usual: Sequence[str], kind: str) -> str:
    if asked is not None and asked in names:
        return asked
    found = next((name for name in usual if name in names), None)
    if asked is not None or found is None:
        hint = nearest(asked or "", names) or f"; it has {', '.join(names)}"
        raise DataError(f"{shown(path)} has no column {asked or ' or '.join(usual)!r} for the {kind}{hint}")
    return found


def _classes(metadata: dict[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names of the classes in the Hub's own note on the columns."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
        names = list(names.values()) if isinstance(names, dict) else names
        return [str(name) for name in names]
    except (KeyError, TypeError, ValueError):
        return None
