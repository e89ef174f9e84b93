"""Nested batches: count their samples, cut them along the samples, map their tensors.

A batch is a tensor (or array), or any nesting of tuples, named tuples, lists, mappings and dataclasses
of them; every container is kept as what it is. ``axis`` is the sample axis: an int for all tensors,
``None`` for tensors that are passed whole, or a mapping or sequence that gives one per key, field or place
(those that are not named have axis 0).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from wholebatch.core.errors import BatchError

Axis = int | None | Mapping[Any, Any] | Sequence[Any]


def _axis_of(axis: Axis, place: Any, tree: Any) -> Axis:
    """The sample axis for one entry of a container; a named tuple's fields have a name and a place."""
    if axis is None or isinstance(axis, int):
        return axis
    if isinstance(axis, Mapping):
        if place not in axis and isinstance(tree, tuple) and hasattr(tree, "_fields"):
            place = tree._fields[place]
        return axis.get(place, 0)
    return axis[place] if isinstance(place, int) and place < len(axis) else 0


def _is_array(item: Any) -> bool:
    return isinstance(item, Tensor | np.ndarray)


def _entries(tree: Any) -> list[tuple[Any, Any]] | None:
    """The (place, value) pairs of a container, or None for a leaf."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, list | tuple):
        return list(enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return None


def _rebuild(tree: Any, values: list[Any], places: list[Any]) -> Any:
    """A container of ``tree``'s kind with other values."""
    if type(tree) is tuple:
        return tuple(values)
    if type(tree) is list:
        return values
    if type(tree) is dict:
        return dict(zip(places, values, strict=True))
    if isinstance(tree, tuple):
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    if isinstance(tree, Mapping) and not isinstance(tree, MutableMapping):  # a read-only view, say
        return type(tree)(dict(zip(places, values, strict=True)))  # type: ignore[call-arg]
    new = copy.copy(tree)
    if isinstance(tree, Mapping | list):
        for place, value in zip(places, values, strict=True):
            new[place] = value
    else:
        for place, value in zip(places, values, strict=True):
            object.__setattr__(new, place, value)
    return new


def arrays(tree: Any, axis: Axis = 0, name: str = "batch") -> Iterator[tuple[str, Any, int]]:
    """Yield (name, tensor or array, sample axis) of everything that is cut along its samples."""
    if _is_array(tree):
        if axis is not None and tree.ndim > 0:
            if not isinstance(axis, int):
                raise BatchError(f"batch_axis gives {axis!r} for {name}, which is a tensor; give an int or None")
            if not -tree.ndim <= axis < tree.ndim:
                raise BatchError(f"batch_axis {axis} is outside {name} of shape {tuple(tree.shape)}")
            yield name, tree, axis
        return
    if isinstance(tree, PackedSequence):
        raise BatchError(
            f"{name} is a PackedSequence, which cannot be cut along its samples; "
            "give the padded tensor and its lengths and pack them inside the model"
        )
    for place, value in _entries(tree) or ():
        where = f"{name}.{place}" if dataclasses.is_dataclass(tree) else f"{name}[{place!r}]"
        yield from arrays(value, _axis_of(axis, place, tree), where)


def count(batch: Any, axis: Axis = 0) -> int:
    """Return the number of samples: the common length of all tensors along their sample axes.

    Raises:
        BatchError: there is no tensor, or one is of another length (the message names it).
    """
    if type(batch) is tuple and axis == 0:  # the usual batch, (inputs, targets), costs two comparisons
        sizes = {part.shape[0] for part in batch if isinstance(part, Tensor) and part.ndim}
        if len(sizes) == 1 and all(isinstance(part, Tensor) for part in batch):
            return sizes.pop()
    found = [(name, item, item.shape[where]) for name, item, where in arrays(batch, axis)]
    if not found:
        raise BatchError(
            f"a batch needs at least one tensor with a sample axis; got {_describe(batch)}. "
            "Give a tensor, or a tuple, list, dict or dataclass of them"
        )
    first_name, _, samples = found[0]
    for name, item, length in found:
        if length != samples:
            raise BatchError(
                f"{name} has {length} samples (shape {tuple(item.shape)}), but {first_name} has {samples}; "
                "all tensors of a batch need one length along the sample axis. "
                "For a tensor that is not per sample, say batch_axis={key: None}"
            )
    return samples


def cut_up(batch: Any, bounds: Sequence[tuple[int, int]], samples: int, axis: Axis = 0) -> Iterator[Any]:
    """Yield the parts of ``batch`` from each start to each stop, which follow each other; see :func:`cut`.

    >>> [part.tolist() for part, in cut_up((torch.arange(5),), [(0, 2), (2, 5)], 5)]
    [[0, 1], [2, 3, 4]]
    """
    if axis == 0 and type(batch) is tuple and all(isinstance(part, Tensor) and part.ndim for part in batch):
        for start, stop in bounds:  # the usual one, in short; views of a split could not be changed in place by a model
            yield tuple([part[start:stop] for part in batch])
        return
    for start, stop in bounds:
        yield cut(batch, start, stop, samples, axis)


def cut(batch: Any, start: int, stop: int, samples: int, axis: Axis = 0) -> Any:
    """Return the samples ``start … stop`` of a batch of ``samples``; tensors are views.

    A list of exactly ``samples`` objects that hold no tensor (strings, say) is cut along, likewise a tuple
    of that many strings; everything else that is no tensor passes whole.

    >>> cut({"x": torch.arange(4), "name": list("abcd"), "scale": 0.5}, 1, 3, 4)
    {'x': tensor([1, 2]), 'name': ['b', 'c'], 'scale': 0.5}
    """
    if type(batch) is tuple and axis == 0 and not (batch and isinstance(batch[0], str)):
        return tuple(
            [
                part[start:stop] if isinstance(part, Tensor) and part.ndim else cut(part, start, stop, samples)
                for part in batch
            ]
        )
    if isinstance(batch, Tensor):
        if axis is None or batch.ndim == 0:
            return batch
        return batch[start:stop] if axis == 0 else batch.narrow(axis, start, stop - start)  # type: ignore[arg-type]
    if isinstance(batch, np.ndarray):
        if axis is None or batch.ndim == 0:
            return batch
        return batch[(slice(None),) * (axis % batch.ndim) + (slice(start, stop),)]  # type: ignore[operator]
    entries = _entries(batch)
    if entries is None:
        return batch
    if isinstance(batch, list | tuple) and _is_per_sample_list(batch, samples, axis):
        return batch[start:stop]
    places = [place for place, _ in entries]
    values = [cut(value, start, stop, samples, _axis_of(axis, place, batch)) for place, value in entries]
    return _rebuild(batch, values, places)


def _is_per_sample_list(items: list[Any] | tuple[Any, ...], samples: int, axis: Axis) -> bool:
    if len(items) != samples or axis is None or not items:
        return False
    if isinstance(items, tuple):
        return all(isinstance(item, str) for item in items)
    return next(arrays(items), None) is None


def join(batches: Sequence[Any]) -> Any:
    """Return one batch with the samples of all ``batches`` in order; the inverse of cutting along axis 0.

    Strings and other objects of each sample are put together as :func:`cut` takes them apart; what is not per sample
    is the first batch's.

    >>> join([{"x": torch.arange(2), "name": ["a", "b"]}, {"x": torch.arange(1), "name": ["c"]}])
    {'x': tensor([0, 1, 0]), 'name': ['a', 'b', 'c']}

    Raises:
        BatchError: the batches are made differently, or their tensors differ in another axis than the samples'.
    """
    sizes = [count(batch) for batch in batches]
    try:
        return _joined(batches, sizes)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise BatchError(f"{len(batches)} batches cannot be joined: {str(error).splitlines()[0]}") from error


def _joined(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    if isinstance(first, np.ndarray):
        return np.concatenate(list(parts)) if first.ndim else first
    entries = _entries(first)
    if entries is None:
        return first
    if isinstance(first, list | tuple) and _is_per_sample_list(first, sizes[0], 0):
        return type(first)(item for part in parts for item in part)
    inner = zip(*([value for _, value in _entries(part) or ()] for part in parts), strict=True)
    return _rebuild(first, [_joined(values, sizes) for values in inner], [place for place, _ in entries])


def double(batch: Any, axis: Axis = 0) -> Any:
    """Return a batch of one sample with that sample twice."""
    return fill(batch, 1, 2, axis)


def fill(batch: Any, samples: int, size: int, axis: Axis = 0) -> Any:
    """Return a batch of ``size`` samples: those of ``batch``, which has ``samples``, over and over.

    >>> fill((torch.arange(2), ["a", "b"]), 2, 3)
    (tensor([0, 1, 0]), ['a', 'b', 'a'])
    """
    if isinstance(batch, Tensor):
        if axis is None or batch.ndim == 0:
            return batch
        times, rest = divmod(size, samples)
        parts = [*[batch] * times, *([batch.narrow(axis, 0, rest)] if rest else [])]  # type: ignore[arg-type]
        return torch.cat(parts, dim=axis)  # type: ignore[arg-type]  # which keeps nothing for backward
    if isinstance(batch, np.ndarray):
        return batch if axis is None or batch.ndim == 0 else np.take(batch, np.arange(size) % samples, axis=axis)  # type: ignore[arg-type]
    entries = _entries(batch)
    if entries is None:
        return batch
    if isinstance(batch, list | tuple) and _is_per_sample_list(batch, samples, axis):
        return type(batch)(batch[number % samples] for number in range(size))
    values = [fill(value, samples, size, _axis_of(axis, place, batch)) for place, value in entries]
    return _rebuild(batch, values, [place for place, _ in entries])


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to every tensor; containers are kept as what they are."""
    if isinstance(tree, Tensor):
        return function(tree)
    entries = _entries(tree)
    if not entries or isinstance(tree, PackedSequence):
        return tree
    values = [map_tensors(function, value) for _, value in entries]
    return _rebuild(tree, values, [place for place, _ in entries])


def to_device(tree: Any, device: torch.device) -> Any:
    """Return ``tree`` with every tensor on ``device`` (copies start without waiting for the host)."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)


def _describe(item: Any) -> str:
    return f"{type(item).__name__} {item!r:.60}"
