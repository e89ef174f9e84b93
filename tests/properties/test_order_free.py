"""Order-free sums: the same bits in every order, grouping and number of parts, and near enough to the true sum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wholebatch.sums.exact import ExactSum
from wholebatch.sums.order_free import MOST_SUMMANDS, OrderFreeSums


def summed(
    parts: Sequence[Sequence[Tensor]], exponent: int | None = None, summands: int | None = None
) -> tuple[Tensor, Fraction, int]:
    """The sum over parts as processes would make it; also exactly, of the first element; and how often it was made."""
    everyone = [OrderFreeSums([parts[0][0] if parts[0] else parts[1][0]]) for _ in parts]
    count = sum(map(len, parts)) if summands is None else summands
    for one in everyone:
        one.load_state_dict({"exponents": [exponent]})
    for tries in range(1, 4):
        for one, part in zip(everyone, parts, strict=True):
            one.begin(count, again=tries > 1)
            for tensor in part:
                one.add([tensor])
        largest = torch.stack([one.largest for one in everyone]).amax(0)
        valid = [one.settle(largest) for one in everyone]
        assert len(set(valid)) == 1
        if valid[0]:
            break
    else:
        raise AssertionError("not valid after three tries")
    first = everyone[0]
    for other in everyone[1:]:
        for mine, theirs in zip(first.multiples, other.multiples, strict=True):
            mine.add_(theirs)
    exact, quantum = Fraction(0), Fraction(2) ** first._settled[0]
    for limb in first.multiples:
        exact += int(limb[0]) * quantum
        quantum /= 2**20
    return first.value(0), exact, tries


def bits(tensor: Tensor) -> bytes:
    return bytes(tensor.numpy().tobytes())


@pytest.mark.parametrize("order", list(itertools.permutations([1e16, 1.0, -1e16])))
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_small_summand_between_large_ones_is_kept_in_every_order(order: Any, cut: int) -> None:
    tensors = [torch.tensor([value], dtype=torch.float64) for value in order]
    assert summed([tensors[:cut], tensors[cut:]])[0].item() == 1.0


reals = {
    torch.float32: st.floats(width=32, allow_nan=False, allow_infinity=False),
    torch.float64: st.floats(min_value=-1e300, max_value=1e300),
    torch.bfloat16: st.floats(width=32, min_value=-(2.0**120), max_value=2.0**120),
}


@st.composite
def cases(draw: Any) -> tuple[list[Tensor], list[int], list[int]]:
    dtype = draw(st.sampled_from(list(reals)))
    length = draw(st.integers(1, 3))
    rows = st.lists(reals[dtype], min_size=length, max_size=length)
    scale = draw(st.sampled_from([1.0, 1e-6, 1e-12]))
    values = draw(st.lists(rows, min_size=1, max_size=9))
    tensors = [torch.tensor(row, dtype=torch.float64).mul_(scale).to(dtype) for row in values]
    order = draw(st.permutations(range(len(tensors))))
    owners = draw(st.lists(st.integers(0, 4), min_size=len(tensors), max_size=len(tensors)))
    return tensors, order, owners


@settings(deadline=None, max_examples=150)
@given(cases(), st.sampled_from([None, -30, 0, 40]))
def test_order_and_parts_do_not_change_a_bit(case: Any, exponent: int | None) -> None:
    tensors, order, owners = case
    whole, exact, _ = summed([tensors], exponent)
    parts: list[list[Tensor]] = [[] for _ in range(5)]
    for place in order:
        parts[owners[place]].append(tensors[place])
    parts = sorted(parts, key=len, reverse=True)  # the first one tells the shape
    other, _, _ = summed(parts, exponent)
    assert bits(whole) == bits(other)
    largest = max(abs(Fraction(float(value))) for tensor in tensors for value in tensor)
    true = sum(Fraction(float(tensor[0])) for tensor in tensors)
    assert abs(exact - true) <= largest / 2**41 + Fraction(2) ** -900


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(), max_size=8), st.randoms())
def test_a_sum_of_numbers_is_exact_in_every_order(values: list[float], random: Any) -> None:
    one, parts = ExactSum(), [ExactSum() for _ in range(3)]
    for value in values:
        one.add(value)
    for value in random.sample(values, len(values)):
        random.choice(parts).add(value)
    for part in parts[1:]:
        parts[0].merge(part)
    assert str(one.value) == str(parts[0].value)
    if all(map(math.isfinite, values)):
        assert one.value == pytest.approx(math.fsum(values)) or math.isinf(one.value)


@pytest.mark.parametrize("summands", [1, 2, 7, 8, 100, 1000, 1023, 1024, 4095, MOST_SUMMANDS])
@pytest.mark.parametrize("kind", ["largest there is", "all ties"])
def test_the_error_at_its_worst(summands: int, kind: str) -> None:
    """All summands as large as can be: their sum fits. All but one half a quantum: each is rounded by as much."""
    if kind == "largest there is":
        values = [1.0 - 2.0**-53] * summands
        # the bound of a sum before was as near as can be: these summands just fit below it
        exponent = -OrderFreeSums([torch.zeros(1)])._headroom
    else:
        log = summands.bit_length()
        window = 23 - 2 * log + (20 if log >= 11 else 0)
        quantum = 2.0 ** (min(6, window // 2) + log - 63 - (20 if log >= 11 else 0))
        values, exponent = [0.5] + [quantum / 2 * (1 - 2.0**-30)] * (summands - 1), 0
    for bound in (exponent, None):
        _, exact, _ = summed([[torch.tensor([value], dtype=torch.float64) for value in values]], bound)
        true = sum(map(Fraction, values))
        assert abs(exact - true) * 2**40 < Fraction(max(values))
        if kind == "all ties" and summands > 1:
            assert exact != true


def test_the_bound_rises_and_falls_by_what_was_seen() -> None:
    def one(value: float, exponent: int | None) -> int:
        return summed([[torch.tensor([value])] * 4], exponent)[2]

    assert one(1.5, None) == 2
    assert [one(1.5, exponent) for exponent in (1, 0, -4, 10)] == [1, 1, 1, 1]
    assert one(1.5e6, 1) == 2
    assert one(1.5e-6, 1) == 2
    after = OrderFreeSums([torch.zeros(1)])
    for value in (1.5, 1.5e6, 1.5e-6):
        again = False
        while True:
            after.begin(4, again)
            after.add([torch.tensor([value])])
            if after.settle(after.largest):
                break
            again = True
        assert after.exponents == [math.frexp(value)[1]]


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found(strange: float) -> None:
    sums = OrderFreeSums([torch.zeros(2), torch.zeros(2)])
    sums.load_state_dict({"exponents": [0, 0]})
    sums.begin(2)
    sums.add([torch.tensor([0.25, strange]), torch.tensor([0.25, 0.5])])
    sums.add([torch.tensor([0.25, 0.5]), None])
    assert sums.settle(sums.largest)
    assert sums.value(0).isnan().all()
    assert sums.value(1).tolist() == [0.25, 0.5]
    assert sums.exponents == [0, 0]


def test_zeros_and_nothing_at_all() -> None:
    sums = OrderFreeSums([torch.zeros(2), torch.zeros(3), torch.zeros(0)])
    sums.begin(5)
    sums.add([torch.zeros(2), None, torch.zeros(0)])
    assert sums.settle(sums.largest)
    assert [sums.value(number).tolist() for number in range(3)] == [[0.0, 0.0], [0.0, 0.0, 0.0], []]
    with pytest.raises(ValueError, match="4097 summands"):
        sums.begin(4097)
    with pytest.raises(ValueError, match="a state of 1 sums for 3"):
        sums.load_state_dict({"exponents": [1]})
