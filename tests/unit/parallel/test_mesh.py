"""Layouts: what fits, what does not, and what is said then."""

from __future__ import annotations

from typing import Any

import pytest

import wholebatch as wb
from wholebatch.parallel.mesh import Layout


@pytest.mark.parametrize(
    ("said", "size", "layout"),
    [
        ({}, 1, Layout()),
        ({}, 6, Layout(data=6)),
        ({"data": "auto", "tensor": 2}, 6, Layout(data=3, tensor=2)),
        ({"data": None, "shard": 4}, 4, Layout(shard=4)),
        ({"data": 2, "shard": 2, "tensor": 2, "pipeline": 2, "engine": "auto"}, 16, Layout(2, 2, 2, 2)),
    ],
)
def test_a_layout(said: dict[str, Any], size: int, layout: Layout) -> None:
    assert Layout.of(said, size) == layout
    assert layout.size == size


@pytest.mark.parametrize(
    ("said", "size", "words"),
    [
        ({"shard": 3}, 4, "shard=3 make 3, but the number of processes is 4; 4 processes would fit shard=4 or data=2"),
        ({"data": 3, "tensor": 2}, 4, "data=3 × tensor=2 make 6, but the number of processes is 4; 4 processes would"),
        ({"data": 3, "tensor": 2}, 4, "fit tensor=4 or data=2 × tensor=2 or data=4; or start 6 of them"),
        ({"data": 3}, 1, "data=3 make 3, but the number of processes is 1; 1 process would fit data=1"),
        ({"pipeline": 7, "tensor": 5}, 36, "and 28 more"),
        ({"pipeline": 0}, 2, "pipeline=0; expected the number of processes"),
        ({"tensor": True}, 2, "tensor=True; expected the number"),
        ({"shard": "auto"}, 2, "shard='auto'; expected the number"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(said: dict[str, Any], size: int, words: str) -> None:
    with pytest.raises(wb.ConfigError) as caught:
        Layout.of(said, size)
    assert words in str(caught.value)


def test_ranks_are_laid_out_with_tensor_fastest() -> None:
    layout = Layout(data=2, shard=2, tensor=2, pipeline=2)
    assert [layout.place(rank)["tensor"] for rank in range(4)] == [0, 1, 0, 1]
    assert layout.place(13) == {"pipeline": 1, "data": 1, "shard": 0, "tensor": 1}
    groups = layout.sharing_samples()
    assert groups == [[0, 2, 4, 6], [1, 3, 5, 7], [8, 10, 12, 14], [9, 11, 13, 15]]
