"""Windows that loops get wrong, made from the micro-batches that are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from wholebatch.core import tree
from wholebatch.core.errors import BatchError
from wholebatch.step import losses
from wholebatch.verifying.exact import samples_of

Pieces = list[Any]


def variants(pieces: Pieces) -> list[tuple[str, Pieces]]:
    """Return the windows beside the given one: (name, micro-batches); those that cannot be made are left out."""
    made = []
    for name, make in (("uneven last micro-batch", _uneven), ("short window", _short), ("another split", _split)):
        try:
            found = make(pieces)
        except BatchError:  # micro-batches without a common sample axis, or padded to different lengths
            continue
        if found is not None:
            made.append((f"{name}, {_sizes(found)}", found))
    return made


def _sizes(pieces: Pieces) -> str:
    sizes = [str(samples_of(piece)) for piece in pieces]
    return "+".join(sizes) if len(sizes) <= 4 else f"{sizes[0]}+…+{sizes[-1]}"


def _cut(piece: Any, start: int, stop: int) -> Any:
    return tree.cut(piece, start, stop, tree.count(piece))


def _uneven(pieces: Pieces) -> Pieces | None:
    """The last micro-batch has one sample; where all have one already, the first has two."""
    sizes = [tree.count(piece) for piece in pieces]
    if len(pieces) == 1:
        return [_cut(pieces[0], 0, sizes[0] - 1), _cut(pieces[0], sizes[0] - 1, sizes[0])] if sizes[0] > 2 else None
    if sizes[-1] > 1:
        return [*pieces[:-1], _cut(pieces[-1], 0, 1)]
    if max(sizes) > 1 or len(pieces) < 3:
        return None
    return [tree.join(pieces[:2]), *pieces[2:]]


def _short(pieces: Pieces) -> Pieces | None:
    return pieces[: (len(pieces) + 1) // 2] if len(pieces) > 1 else None


def _split(pieces: Pieces) -> Pieces | None:
    """The same samples, in one micro-batch less (two at least), the first the largest."""
    samples = sum(tree.count(piece) for piece in pieces)
    count = max(2, len(pieces) - 1)
    if samples <= count:
        return None
    whole, parts = tree.join(pieces), count * (count + 1) // 2
    edges, done = [0], 0
    for place in range(count):
        done += count - place
        edges.append(max(edges[-1] + 1, min(samples * done // parts, samples - (count - place - 1))))
    return [_cut(whole, start, stop) for start, stop in pairwise(edges)]


def masked(pieces: Pieces, loss: Any) -> list[tuple[str, Pieces]]:
    """Return windows whose labels are partly ignored: fewer from micro-batch to micro-batch, and one without any.

    A loss of torch that has an ``ignore_index`` says which label that is; a function's may be -100, as usual. Whether
    it is, the weights of the exact window tell.
    """
    bound = losses.bind(loss)
    ignored = -100
    if isinstance(bound, losses.TorchLoss):
        asked = bound.ignore_index
        if asked is None:
            return []
        ignored = asked
    if any(_labels(piece) is None for piece in pieces):
        return []
    count = len(pieces)
    fading = [_masked(piece, ignored, (count - place) / (count + (count == 1))) for place, piece in enumerate(pieces)]
    windows = [("labels masked unevenly", fading)]
    if count > 1:
        middle = count // 2
        none = [_masked(piece, ignored, 0.0) if place == middle else piece for place, piece in enumerate(pieces)]
        windows.append(("one micro-batch all masked", none))
    return windows


def _labels(piece: Any) -> Tensor | None:
    """The labels: the entry of that name, or the last part of ``(inputs, …, labels)``; None where it has none."""
    if isinstance(piece, Mapping):
        found = piece.get("labels")
    else:
        found = piece[-1] if isinstance(piece, tuple | list) and len(piece) > 1 else None
    return found if isinstance(found, Tensor) and found.dtype in (torch.int64, torch.int32) and found.ndim else None


def _masked(piece: Any, ignored: int, share: float) -> Any:
    """A copy of a micro-batch in which only a share of the labels counts, the last ones, one at least unless 0."""
    new = copy.deepcopy(piece)
    labels = _labels(new)
    assert labels is not None
    flat = labels.view(-1) if labels.is_contiguous() else labels.reshape(-1)
    keep = min(flat.numel(), max(1, round(flat.numel() * share))) if share else 0
    flat[: flat.numel() - keep] = ignored
    if flat.data_ptr() != labels.data_ptr():
        labels.copy_(flat.view_as(labels))
    return new


def fresh(pieces: Sequence[Any], dtype: torch.dtype | None) -> Pieces:
    """Copies for one window, so that nothing done to them stays; floating tensors in ``dtype``."""
    floating: Callable[[Tensor], Tensor] = lambda t: t.to(dtype) if dtype and t.is_floating_point() else t  # noqa: E731
    return [tree.map_tensors(floating, copy.deepcopy(piece)) for piece in pieces]
