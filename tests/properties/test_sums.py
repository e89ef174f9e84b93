"""Any partition and any order of the additions, and any way of merging, gives the same sums."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wholebatch import Accumulator, Accuracy, Mean

common = settings(deadline=None, max_examples=40)
floats = st.floats(-1e6, 1e6, width=32)
rows = st.lists(st.tuples(floats, st.integers(-(2**40), 2**40), st.integers(0, 9)), min_size=1, max_size=40)


@st.composite
def partitions(draw: Any) -> list[list[tuple[float, int, int]]]:
    """The rows, shuffled and cut into parts, some of them empty."""
    shuffled = draw(st.permutations(draw(rows)))
    cuts = sorted(draw(st.lists(st.integers(0, len(shuffled)), max_size=6)))
    return [list(shuffled[a:b]) for a, b in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]


def close(value: float, summands: list[float]) -> bool:
    """1e-15 of the sum of the magnitudes, the exact sum being ``fsum``'s."""
    return abs(value - math.fsum(summands)) <= 1e-15 * max(math.fsum(map(abs, summands)), 1e-300)


def as_added(values: list[Any], how: int, dtype: torch.dtype) -> list[Any]:
    """The same values as one tensor, as 0-dim tensors, or as numbers."""
    if how == 0:
        return [torch.tensor(values, dtype=dtype)]
    return [torch.tensor(value, dtype=dtype) if how == 1 else value for value in values]


@common
@given(partitions(), st.lists(st.integers(0, 2), min_size=1))
def test_accumulator_and_mean(parts: list[list[tuple[float, int, int]]], ways: list[int]) -> None:
    acc, mean, weighted = Accumulator("x", "n"), Mean(), Mean()
    for index, part in enumerate(parts):
        how = ways[index % len(ways)]
        xs, ns, ws = ([row[column] for row in part] for column in range(3))
        for x, n in zip(as_added(xs, how, torch.float64), as_added(ns, how, torch.int64), strict=True):
            acc.add(x, n)
        for x, w in zip(as_added(xs, how, torch.float64), as_added(ws, how, torch.int64), strict=True):
            mean.add(x)
            weighted.add(x, w)
    everything = [row for part in parts for row in part]
    assert acc["n"] == sum(n for _, n, _ in everything)
    assert close(acc["x"], [x for x, _, _ in everything])
    assert mean.weight == len(everything)
    assert mean.value == pytest.approx(acc["x"] / len(everything), rel=1e-15)
    assert weighted.weight == sum(w for _, _, w in everything)
    if weighted.weight:
        assert close(weighted._sum.read(), [x * w for x, _, w in everything])


def part_of(part: list[tuple[float, int, int]], kind: int) -> Any:
    if kind == 0:
        acc = Accumulator(2)
        for x, n, _ in part:
            acc.add(torch.tensor(x), n)
        return acc
    if kind == 1:
        mean = Mean()
        for x, _, w in part:
            mean.add(torch.tensor(x), torch.tensor(w))
        return mean
    accuracy = Accuracy(10, ignore_index=9, topk=(1, 3))
    for x, n, w in part:
        accuracy.add(torch.tensor([[math.sin(x + n * k) for k in range(10)]]), torch.tensor([w]))
    return accuracy


def content(one: Any) -> tuple[torch.Tensor, list[int]]:
    state = one.all_reduce().state_dict()
    return state["floats"], state["ints"].tolist()


@common
@given(rows, rows, rows, st.integers(0, 2))
def test_merge_is_associative_with_the_empty_one_as_identity(a: Any, b: Any, c: Any, kind: int) -> None:
    x, y, z, empty = part_of(a, kind), part_of(b, kind), part_of(c, kind), part_of([], kind)
    before = content(x)
    left, right, whole = content((x + y) + z), content(x + (y + z)), content(part_of(a + b + c, kind))
    magnitude = sum(abs(value) * (1 + weight) for value, _, weight in a + b + c)
    for other in (right, whole, content(z + x + y), content(copy.copy(z).merge(y).merge(x))):
        torch.testing.assert_close(left[0], other[0], rtol=0, atol=1e-15 * magnitude)
        assert left[1] == other[1]
    for same in (x + empty, empty + x, x):
        assert torch.equal(content(same)[0], before[0])
        assert content(same)[1] == before[1]


@common
@given(st.data(), st.integers(1, 6), st.sampled_from([None, -1, 0]))
def test_accuracy_by_any_partition(data: Any, classes: int, ignore: int | None) -> None:
    n = data.draw(st.integers(1, 60))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randint(-2, 3, (n, classes), generator=generator).double()  # many ties
    logits[torch.rand(n, generator=generator) < 0.1, 0] = math.nan
    targets = torch.randint(classes, (n,), generator=generator)
    if ignore is not None:
        targets[torch.rand(n, generator=generator) < 0.2] = ignore
    whole, parts = Accuracy(classes, ignore), Accuracy(classes, ignore)
    whole.add(logits, targets)
    order = torch.randperm(n, generator=generator)
    for piece in order.split(data.draw(st.integers(1, n))):
        parts.add(logits[piece], targets[piece])
        if data.draw(st.booleans()):
            assert parts.count >= 0  # a read in between folds early
    keep = torch.ones(n, dtype=torch.bool) if ignore is None else targets != ignore
    broken = logits.isnan().any(1)
    hits = (logits.nan_to_num(9).argmax(1) == targets) & keep & ~broken
    assert torch.equal(whole.confusion, parts.confusion)
    assert whole.count == parts.count == int(keep.sum())
    assert whole.nan_count == parts.nan_count == int((keep & broken).sum())
    assert int(whole.confusion.diagonal().sum()) == int(hits.sum())
