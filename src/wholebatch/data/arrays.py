"""Data in memory: tensors that share their first axis, indexed as tensors and never collated sample by sample."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from wholebatch.core import tree
from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data.transform import Transform


class ArrayDataset(Dataset[Any]):
    """Tensors (or arrays) with one row per sample.

    A batch of it is what the parts are: one part gives itself, several give a tuple. A part is a tensor, a
    NumPy array (its memory is shared), a sequence of numbers, or a mapping, tuple or list of them.

    Args:
        parts: usually ``inputs, targets``.
        classes: names of the classes, in the order of their labels.
        transform: what turns stored values into what a model takes, :class:`Normalize` for bytes. A
            :class:`BatchLoader` without a transform of its own applies it; ``dataset[i]`` and ``inputs`` do not.

    Raises:
        DataError: no samples, parts of different lengths, or an array that torch cannot hold.

    >>> data = ArrayDataset(torch.zeros(3, 1, 8, 8), [0, 1, 1], classes=["cat", "dog"])
    >>> len(data), data.inputs.shape, data.targets, data[1][1]
    (3, torch.Size([3, 1, 8, 8]), tensor([0, 1, 1]), tensor(1))
    """

    def __init__(self, *parts: Any, classes: Sequence[str] | None = None, transform: Transform | None = None) -> None:
        if not parts:
            raise DataError("ArrayDataset needs at least one tensor with one row per sample; give inputs, targets")
        self.batch = as_tensors(parts[0] if len(parts) == 1 else parts, "data")
        self.classes = None if classes is None else tuple(classes)
        self.transform = transform
        self._samples, self.bytes_per_sample = _measure(self.batch)
        tensors = self.batch if type(self.batch) is tuple else ()
        self._flat = tensors if all(isinstance(part, Tensor) and part.ndim for part in tensors) else ()
        self._on_host = all(item.device.type == "cpu" for _, item, _ in tree.arrays(self.batch))

    @property
    def inputs(self) -> Any:
        """The first part, (samples, ...)."""
        return self.batch[0] if isinstance(self.batch, tuple | list) else self.batch

    @property
    def targets(self) -> Any:
        """The second part, (samples, ...), or None where there is none."""
        return self.batch[1] if isinstance(self.batch, tuple | list) and len(self.batch) > 1 else None

    def take(self, indices: Tensor) -> Any:
        """Return the batch of the samples ``indices`` (int64, one-dimensional): new memory, one index per tensor."""
        if self._flat and self._on_host:
            return tuple([part.index_select(0, indices) for part in self._flat])
        return tree.map_tensors(
            lambda part: part.index_select(0, indices.to(part.device)) if part.ndim else part, self.batch
        )

    def __getitem__(self, index: Any) -> Any:
        """Return sample ``index`` as stored, for example ``(image, label)``; a slice gives that many rows."""
        return tree.map_tensors(lambda part: part[index] if part.ndim else part, self.batch)

    def __len__(self) -> int:
        return self._samples

    def __repr__(self) -> str:
        shapes = ", ".join(f"{str(item.dtype)[6:]}{list(item.shape)}" for _, item, _ in tree.arrays(self.batch))
        return f"ArrayDataset({self._samples} samples: {shapes})"


def _measure(batch: Any) -> tuple[int, int]:
    """The number of samples and the bytes of one; refuses parts without or with other rows."""
    found = list(tree.arrays(batch, 0, "data"))
    if not found:
        raise DataError(f"a data set in memory needs a tensor with one row per sample, got {batch!r:.80}")
    samples = len(found[0][1])
    if any(len(item) != samples for _, item, _ in found):
        usual = {"data[0]": "inputs", "data[1]": "targets"} if type(batch) is tuple else {}
        lengths = ", ".join(f"{usual.get(name, name)} {len(item)} {tuple(item.shape)}" for name, item, _ in found)
        raise DataError(f"every tensor of a data set needs one row per sample, but the lengths differ: {lengths}")
    if samples == 0:
        raise DataError(f"the data set is empty: {found[0][0]} has shape {tuple(found[0][1].shape)}")
    return samples, sum(item.nbytes for _, item, _ in found) // samples


def as_tensors(item: Any, name: str) -> Any:
    """Return ``item`` with every array and every sequence of numbers as a tensor; arrays share their memory."""
    if isinstance(item, Tensor | str | bytes) or item is None or isinstance(item, Number):
        return item
    if isinstance(item, Mapping):
        return {key: as_tensors(value, f"{name}[{key!r}]") for key, value in item.items()}
    if isinstance(item, tuple | list):
        if all(isinstance(value, Number) for value in item):
            return torch.tensor(item)
        if any(isinstance(value, str | bytes) for value in item):
            raise DataError(
                f"{name} is a {type(item).__name__} of strings, which a data set in memory cannot index; "
                "give numbers, or a Dataset whose samples hold the strings"
            )
        values = [as_tensors(value, f"{name}[{place}]") for place, value in enumerate(item)]
        return type(item)(*values) if hasattr(item, "_fields") else type(item)(values)
    if hasattr(item, "__array__"):
        return _from_numpy(np.asarray(item), name)
    raise InputTypeError(f"{name} is a {type(item).__name__}; give a tensor, an array or a sequence of numbers")


def _from_numpy(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        with warnings.catch_warnings():  # batches are copies, so nobody writes to an array that is read-only
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(array)
    except TypeError as error:
        raise DataError(
            f"{name} is an array of {array.dtype} and shape {array.shape}, which torch cannot hold; "
            "convert it to numbers"
        ) from error
