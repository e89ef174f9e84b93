"""Counting, cutting and mapping nested batches."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any

import numpy as np
import pytest
import torch

from wholebatch.core import tree
from wholebatch.core.errors import BatchError

X = torch.arange(12.0).view(6, 2)
Y = torch.arange(6)
Pair = collections.namedtuple("Pair", "x y")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: torch.Tensor
    y: torch.Tensor
    note: str = "n"


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        Pair(X, Y),
        Frozen(X, Y),
        {"x": X, "y": Y},
        collections.OrderedDict(x=X, y=Y),
        collections.defaultdict(list, x=X, y=Y),
        collections.UserDict(x=X, y=Y),
        collections.ChainMap({"x": X}, {"y": Y}),
        types.MappingProxyType({"x": X, "y": Y}),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_containers_are_kept_as_what_they_are(batch: Any) -> None:
    def parts(of: Any) -> list[Any]:
        if isinstance(of, collections.abc.Mapping):
            return [of["x"], of["y"]]
        return [of.x, of.y] if hasattr(of, "x") else [of[0], of[1]]

    assert tree.count(batch) == 6
    for result, expected in (
        (tree.cut(batch, 1, 4, 6), [X[1:4], Y[1:4]]),
        (tree.map_tensors(lambda t: t * 2, batch), [X * 2, Y * 2]),
        (tree.double(tree.cut(batch, 2, 3, 6)), [X[[2, 2]], Y[[2, 2]]]),
    ):
        assert type(result) is type(batch)
        assert all(torch.equal(a, b) for a, b in zip(parts(result), expected, strict=True))
    assert torch.equal(parts(batch)[0], X)
    assert tree.cut(batch, 1, 4, 6) is not batch


def test_what_is_cut_along_and_what_passes_whole() -> None:
    scale, objects = torch.tensor(2.0), [object() for _ in range(6)]
    batch = {
        "x": X,
        "names": list("abcdef"),
        "objects": objects,
        "tuple": tuple("abcdef"),
        "short": list("abc"),
        "sizes": (1, 2, 3, 4, 5, 6),
        "array": np.arange(6),
        "scalar": scale,
        "number": 0.5,
        "none": None,
        "text": "abcdef",
        "empty": [],
        "kind": Frozen,
    }
    piece = tree.cut(batch, 2, 4, 6)
    assert torch.equal(piece["x"], X[2:4])
    assert piece["names"] == ["c", "d"]
    assert piece["objects"] == objects[2:4]
    assert piece["tuple"] == ("c", "d")
    assert piece["short"] == list("abc")
    assert piece["sizes"] == (1, 2, 3, 4, 5, 6)
    assert piece["array"].tolist() == [2, 3]
    assert piece["scalar"] is scale
    assert [piece[name] for name in ("number", "none", "text", "empty")] == [0.5, None, "abcdef", []]
    assert piece["kind"] is Frozen


def test_strings_in_a_tuple_batch() -> None:
    names, x, _ = tree.cut((tuple("abcdef"), X, Y), 0, 2, 6)
    assert names == ("a", "b")
    assert torch.equal(x, X[:2])
    assert tree.cut(("title", X), 0, 2, 6)[0] == "title"
    assert tree.cut((X, list("abcdef")), 4, 6, 6)[1] == ["e", "f"]
    assert tree.cut(tuple("abcdef"), 1, 3, 6) == ("b", "c")


def test_pieces_are_views() -> None:
    assert tree.cut((X, Y), 1, 3, 6)[0].data_ptr() == X[1:].data_ptr()


@pytest.mark.parametrize("axis", [1, -1])
def test_another_axis_for_all(axis: int) -> None:
    batch = (X.t(), np.asarray(X.t()), torch.tensor(1.0), list("abcdef"), np.float64(2), np.array(3))
    assert tree.count(batch, axis) == 6
    piece = tree.cut(batch, 1, 3, 6, axis)
    assert torch.equal(piece[0], X.t()[:, 1:3])
    assert piece[1].tolist() == X.t()[:, 1:3].tolist()
    assert piece[3:5] == (["b", "c"], 2)
    assert piece[5] == 3
    twice = tree.double(tree.cut(batch, 1, 2, 6, axis), axis)
    assert torch.equal(twice[0], X.t()[:, [1, 1]])
    assert twice[1].tolist() == X.t()[:, [1, 1]].tolist()
    assert twice[3:] == (["b", "b"], 2, 3)


def test_an_axis_per_key_place_and_field() -> None:
    table = torch.ones(9)
    for batch, axis in (
        ({"x": X.t(), "y": Y, "w": table}, {"x": 1, "w": None}),
        ((X.t(), Y, table), (1, 0, None)),
        ((X.t(), Y, table), {0: -1, 2: None}),
        (({"a": X.t()}, Y, [table, "t"]), ({"a": 1}, 0, None)),
        (collections.namedtuple("B", "x y w")(X.t(), Y, table), {"x": 1, "w": None}),
        (Frozen(X.t(), Y), {"x": 1}),
    ):
        assert tree.count(batch, axis) == 6
        piece = tree.cut(batch, 1, 3, 6, axis)
        leaves = [item for _, item, _ in tree.arrays(piece, axis)]
        assert torch.equal(leaves[0], X.t()[:, 1:3])
        assert torch.equal(leaves[1], Y[1:3])
    assert torch.equal(tree.cut((X, Y, X), 0, 1, 6, [0])[2], X[:1])  # those that are not named have axis 0
    whole = tree.cut({"x": X, "w": table}, 0, 1, 6, {"w": None})
    assert whole["w"] is table
    assert tree.double({"x": X[:1], "w": table}, {"w": None})["w"] is table
    assert tree.cut(X, 0, 2, 6, None) is X
    assert tree.double(X, None) is X
    array = np.ones(3)
    assert tree.cut(array, 0, 1, 6, None) is array
    assert tree.double(array, None) is array


@pytest.mark.parametrize(
    ("batch", "axis", "words"),
    [
        ((X, Y[:4]), 0, r"batch\[1\] has 4 samples \(shape \(4,\)\), but batch\[0\] has 6"),
        ([X, Y[:4]], 0, r"batch\[1\] has 4 samples"),
        ({"a": X, "b": np.ones(3)}, 0, r"batch\['b'\] has 3 samples"),
        (Frozen(X, Y[:4]), 0, r"batch\.y has 4 samples"),
        ((X, Y), 1, r"batch_axis 1 is outside batch\[1\] of shape \(6,\)"),
        ((X, Y), -2, r"batch_axis -2 is outside batch\[1\]"),
        ((X, Y), ({"x": 1}, 0), r"for batch\[0\], which is a tensor"),
        ("text", 0, "str 'text'"),
        ((torch.tensor(1.0),), 0, "at least one tensor"),
        (torch.tensor(1.0), 0, "at least one tensor"),
        (X, None, "at least one tensor"),
        ({"p": torch.nn.utils.rnn.pack_sequence([X])}, 0, r"batch\['p'\] is a PackedSequence"),
    ],
)
def test_what_has_no_number_of_samples(batch: Any, axis: Any, words: str) -> None:
    with pytest.raises(BatchError, match=words):
        tree.count(batch, axis)


def test_mapping_leaves_what_is_no_tensor() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([X])
    batch = {"x": X, "n": 3, "p": packed, "e": ()}
    mapped = tree.map_tensors(lambda t: t + 1, batch)
    assert torch.equal(mapped["x"], X + 1)
    assert mapped["n"] == 3
    assert mapped["p"] is packed
    assert tree.to_device(batch, torch.device("meta"))["x"].is_meta
