"""Data sets by name, as configurations and the command line say them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wholebatch.core.errors import DataError, nearest
from wholebatch.data import imported, listing
from wholebatch.data.cifar import cifar10, cifar100
from wholebatch.data.embedded import digits
from wholebatch.data.folder import image_folder
from wholebatch.data.huggingface import hugging_face
from wholebatch.data.imagenet import ImageNetTrain, ImageNetValidation
from wholebatch.data.imagenet.settings import Settings
from wholebatch.data.imageset import ImageDataset
from wholebatch.data.listing import image_list
from wholebatch.data.mnist import fashion_mnist, mnist
from wholebatch.data.split import SPLITS
from wholebatch.data.text import text

Reader = Callable[..., Any]


def _digits(split: str, root: str | None = None) -> Any:
    """The embedded digits, which have no folder."""
    if root is not None:
        raise DataError(f"data.root={root}: digits is embedded and has no folder; leave it out")
    return digits(split)


def _placed(
    read: Reader, what: str, split: str, root: str | None = None, in_memory: bool = False, **options: Any
) -> Any:
    """A reader whose data lie at a path of their own."""
    if root is None:
        raise DataError(f"say which {what}: data.root=PATH")
    data = read(root, split, **options)
    return data.in_memory() if in_memory and isinstance(data, ImageDataset) else data


def _imagenet(split: str, root: str | None = None, **options: Any) -> Any:
    """ImageNet's training or validation part, whose options are the keys of its own configuration."""
    if split not in SPLITS:
        raise DataError(f"imagenet has the splits 'train' and 'test', got {split!r}{nearest(str(split), SPLITS)}")
    return (ImageNetTrain if split == "train" else ImageNetValidation)(options, data_root=root)


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "digits": _digits,
        "cifar10": cifar10,
        "cifar100": cifar100,
        "fashion_mnist": fashion_mnist,
        "mnist": mnist,
        "imagenet": _imagenet,
        "text": text,
        "folder": partial(_placed, image_folder, "folder of images"),
        "list": partial(_placed, image_list, "CSV or JSON-lines list of files and labels"),
        "hf": partial(_placed, hugging_face, "parquet file, folder or data set of the Hub"),
    }
)
"""Each is called with (split, root=…, further options); ``package.module:name`` is a name as well."""

_OPTIONS_OF: Mapping[str, Reader] = {"folder": image_folder, "list": image_list, "hf": hugging_face}
_NOT_OPTIONS = {"split", "root", "path", "source"}
_IMAGENET_OPTIONS = {field.name for field in fields(Settings)} - {"process_images"}  # training needs the images


def check_name(name: str) -> None:
    """Raise where there is no data set of this name; nothing is read (a module is imported).

    Raises:
        DataError: the message names the nearest, or all.
    """
    if ":" in name:
        imported.find(name)
    elif name not in READERS:
        hint = nearest(name, READERS) or f"; choose from {', '.join(sorted(READERS))}, or package.module:name"
        raise DataError(f"there is no such data set{hint}")


def options(name: str) -> set[str] | None:
    """Return the names of the further options that a data set takes, or None where it takes any.

    >>> sorted(options("cifar10"))
    ['download']
    """
    if ":" in name:
        known = imported.parameters(imported.find(name))
        return known if known is None else known - {"split", "train", "root"}
    if name == "imagenet":
        return set(_IMAGENET_OPTIONS)
    reader = _OPTIONS_OF.get(name, READERS[name])
    extra = {"in_memory"} if name in _OPTIONS_OF else set()
    return {*inspect.signature(reader).parameters, *extra} - _NOT_OPTIONS


def read(name: str, split: str, root: str | None = None, **arguments: Any) -> Any:
    """Return one part of the data set ``name``: map-style, with ``classes`` and len.

    Args:
        name: of :data:`READERS`, or ``package.module:name`` (:func:`wholebatch.data.imported.make`).
        split: "train" or "test".
        root: where its files are.
        arguments: further options of the reader.

    Raises:
        DataError: no such name, and as the reader does.

    >>> read("digits", "test")
    ArrayDataset(360 samples: uint8[360, 1, 8, 8], int64[360])
    """
    check_name(name)
    if ":" in name:
        return imported.make(name, split, root, **arguments)
    try:
        return READERS[name](split, root=root, **arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        raise DataError(f"data set {name}: {error}") from error


def classes_of(dataset: Any) -> tuple[str, ...]:
    """Return the names of a data set's classes: what it says itself, else the numbers up to its largest target.

    A data set of tokens, which says its ``vocabulary`` and no classes, has none.

    Raises:
        DataError: it says nothing.
    """
    said = getattr(dataset, "classes", None)
    if said is not None and not isinstance(said, str | bytes):
        return tuple(map(str, said))
    if getattr(dataset, "vocabulary", None) is not None:
        return ()
    targets = getattr(dataset, "targets", None)
    if targets is not None and len(targets):
        return tuple(str(number) for number in range(int(max(map(int, targets))) + 1))
    raise DataError(f"{type(dataset).__name__} does not say its classes; give it an attribute classes, their names")


def guess(path: str | os.PathLike[str]) -> str:
    """Return which reader is for a path: "list" for CSV and JSON lines, "hf" for parquet, "folder" for others.

    Raises:
        DataError: there is no such path, or it is a file of another kind.
    """
    place = Path(path)
    suffix = place.suffix.lower()
    if not place.exists():
        raise DataError(f"there is no data set and no path {os.fspath(path)!r}{nearest(os.fspath(path), READERS)}")
    if place.is_dir():
        saved = any((place / name).is_file() for name in ("dataset_info.json", "dataset_dict.json"))
        return "hf" if saved or next(place.rglob("*.parquet"), None) is not None else "folder"
    if suffix in listing.EXTENSIONS:
        return "list"
    if suffix == ".parquet":
        return "hf"
    raise DataError(f"{os.fspath(path)!r} is neither a folder nor a list (.csv, .jsonl) nor a parquet file")
