"""What one process holds of a tensor that several processes share: pieces, and where in the whole they are.

A checkpoint's ``state.pt`` has a plain dict in the place of such a tensor, which names it and says its shape and dtype;
its content is in ``shards/`` (:mod:`wholebatch.checkpoint.sharded`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAME = "in shards"  # the key of a marker that only markers have


@dataclass(frozen=True)
class Part:
    """Pieces of a tensor; none where only the tensor's place is meant, or where this process holds nothing of it.

    Attributes:
        name: the tensor's, in the checkpoint.
        shape: of the whole.
        dtype: its type.
        pieces: of each, the indices of its first element in the whole, and the piece.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[tuple[tuple[int, ...], Tensor], ...] = ()

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> Part:
        """Return the part that is everything."""
        return cls(name, tuple(tensor.shape), tensor.dtype, (((0,) * tensor.ndim, tensor),))

    @property
    def tensors(self) -> list[Tensor]:
        """The pieces without their places."""
        return [tensor for _, tensor in self.pieces]

    def holding(self, tensors: Sequence[Tensor]) -> Part:
        """Return the same with other tensors, piece by piece."""
        places = [place for place, _ in self.pieces]
        return replace(self, pieces=tuple(zip(places, tensors, strict=True)))

    def marker(self) -> dict[str, Any]:
        """Return the plain dict that stands for it in a file."""
        return {_NAME: self.name, "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}


def take_out(state: Any) -> tuple[Any, dict[str, Part]]:
    """Return ``state`` with a marker in the place of every part, and the parts by their names.

    >>> take_out({"a": Part.whole("model.a", torch.ones(2)), "b": 1})[0]
    {'a': {'in shards': 'model.a', 'shape': [2], 'dtype': 'float32'}, 'b': 1}
    """
    found: dict[str, Part] = {}

    def out(value: Any) -> Any:
        if isinstance(value, Part):
            found[value.name] = value
            return value.marker()
        return None

    return _replaced(state, out), found


def put_back(state: Any) -> Any:
    """Return ``state`` with a part, which holds nothing, in the place of every marker."""
    return _replaced(state, _marked)


def read_parts(folder: Path, wanted: Iterable[Part]) -> None:
    """Fill the pieces of ``wanted`` from a checkpoint's ``shards/``; raises as :func:`sharded.read`."""
    from wholebatch.checkpoint import sharded

    sharded.read(folder, wanted)


def whole_parts(folder: Path, state: Any) -> Any:
    """Return ``state`` with whole tensors from ``folder`` in the place of its parts; those of one name are one tensor.

    Raises:
        CheckpointError: as :func:`sharded.read`.
    """
    known: dict[str, Tensor] = {}

    def made(value: Any) -> Tensor | None:
        if not isinstance(value, Part):
            return None
        if value.name not in known:
            known[value.name] = torch.empty(value.shape, dtype=value.dtype)
        return known[value.name]

    state = _replaced(state, made)
    read_parts(folder, [Part.whole(name, tensor) for name, tensor in known.items()])
    return state


def _marked(value: Any) -> Part | None:
    if not isinstance(value, dict) or value.keys() != {_NAME, "shape", "dtype"}:
        return None
    dtype = getattr(torch, value["dtype"], None)
    return Part(value[_NAME], tuple(value["shape"]), dtype) if isinstance(dtype, torch.dtype) else None


def _replaced(state: Any, function: Callable[[Any], Any]) -> Any:
    """``state`` with everything replaced for which ``function`` gives something."""
    found = function(state)
    if found is not None:
        return found
    if isinstance(state, dict):
        return type(state)((key, _replaced(value, function)) for key, value in state.items())
    if isinstance(state, list | tuple) and not isinstance(state, torch.Size):
        return type(state)(_replaced(value, function) for value in state)
    return state
