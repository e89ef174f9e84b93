"""What people have, turned into something a loader can read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data.arrays import ArrayDataset


def as_dataset(data: Any) -> Any:
    """Return ``data`` as something a loader can read.

    ============================================================  =================================================
    given                                                         returned
    ============================================================  =================================================
    tensor, array                                                 :class:`ArrayDataset` of it
    tuple or list of tensors and arrays, usually ``(X, y)``       :class:`ArrayDataset`, batches are tuples
    mapping of tensors and arrays                                 :class:`ArrayDataset`, batches are dicts
    ``torch.utils.data.TensorDataset``                            :class:`ArrayDataset` of its tensors
    map-style data set (``__len__`` and ``__getitem__``)          itself; samples are fetched one by one and collated
    iterable data set, ``DataLoader``, loader of this package     itself
    ============================================================  =================================================

    Raises:
        DataError: no samples, tensors of different lengths, or an iterator, which can be read only once.
        InputTypeError: none of these.

    >>> import torch
    >>> as_dataset((torch.zeros(4, 2), np.arange(4)))
    ArrayDataset(4 samples: float32[4, 2], int64[4])
    """
    if isinstance(data, ArrayDataset | DataLoader | IterableDataset) or hasattr(data, "windows"):
        return data
    if isinstance(data, TensorDataset):
        return ArrayDataset(data.tensors)
    if _is_array(data) or isinstance(data, Mapping):
        return ArrayDataset(data)
    if isinstance(data, list) and data and _is_array(data[0]):
        return ArrayDataset(tuple(data))
    if isinstance(data, tuple) and any(_is_array(part) for part in data):  # the inputs may be a dict or list of them
        return ArrayDataset(data)
    if isinstance(data, Iterator):
        raise DataError(
            f"a {type(data).__name__} can be read only once, training reads its data once per epoch; "
            "give an IterableDataset, or an object whose __iter__ starts anew"
        )
    if isinstance(data, str | bytes) or not (has_random_access(data) or hasattr(data, "__iter__")):
        raise InputTypeError(
            f"cannot train on a {type(data).__name__}; give (inputs, targets) as tensors or arrays, a dict of them, "
            "a Dataset, a DataLoader or a BatchLoader"
        )
    if has_random_access(data) and len(data) == 0:
        raise DataError(f"the data set is empty: len({type(data).__name__}) is 0")
    return data


def has_random_access(data: Any) -> bool:
    """Say whether any sample can be asked for by its number."""
    streams = isinstance(data, DataLoader | IterableDataset) or hasattr(data, "windows")
    return not streams and hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _is_array(item: Any) -> bool:
    return isinstance(item, Tensor | np.ndarray) or (hasattr(item, "__array__") and hasattr(item, "shape"))
