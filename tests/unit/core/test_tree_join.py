"""Joining batches is the inverse of cutting one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from wholebatch.core import tree
from wholebatch.core.errors import BatchError


class Pair(NamedTuple):
    x: Any
    y: Any


@pytest.mark.parametrize(
    "batch",
    [
        torch.arange(10).view(5, 2),
        (torch.arange(5), torch.ones(5, 2)),
        {"x": torch.arange(5), "deep": [torch.ones(5), {"n": np.arange(5)}], "name": list("abcde"), "scale": 0.5},
        Pair(torch.arange(5), (torch.arange(5.0), torch.tensor(3.0))),
    ],
    ids=["tensor", "tuple", "mapping", "named tuple"],
)
def test_what_was_cut_is_joined(batch: Any) -> None:
    parts = [tree.cut(batch, start, stop, 5) for start, stop in ((0, 2), (2, 3), (3, 5))]
    joined = tree.join(parts)
    assert type(joined) is type(batch)
    for (name, one, _), (other, two, _) in zip(tree.arrays(batch), tree.arrays(joined), strict=True):
        assert name == other
        assert np.array_equal(one, two)
    if isinstance(batch, dict):
        assert (joined["name"], joined["scale"]) == (list("abcde"), 0.5)


def test_what_cannot_be_joined_is_said() -> None:
    with pytest.raises(BatchError, match="2 batches cannot be joined"):
        tree.join([torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(BatchError, match="cannot be joined"):
        tree.join([(torch.ones(2), torch.ones(2)), (torch.ones(2),)])
