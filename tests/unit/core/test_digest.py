"""Every bit counts, wherever it is; the names, shapes and dtypes, too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wholebatch.core.digest import _CHUNK, digest

KINDS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def some(dtype, size=70):
    values = torch.arange(size) * 37 % 101
    return values.to(dtype) if dtype is not torch.bool else values % 2 == 0


@pytest.mark.parametrize("dtype", KINDS)
def test_kinds(dtype):
    found = digest({"a": some(dtype)})
    assert found == digest({"a": some(dtype)})
    assert len(found) == 32
    other = some(dtype)
    other[-1] = ~other[-1] if dtype is torch.bool else other[-1] + 1
    assert digest({"a": other}) != found


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3 * _CHUNK + 6), st.integers(0, 31))
def test_a_single_bit_shows_wherever_it_is(place, bit):
    tensor = torch.zeros(3 * _CHUNK + 7, dtype=torch.int32)
    before = digest({"a": tensor})
    tensor[place] = 1 << bit if bit < 31 else -(1 << 31)
    assert digest({"a": tensor}) != before


def test_places_count():
    """Equal parts that change places, within a row and between rows."""
    tensor = torch.arange(2 * _CHUNK, dtype=torch.float32)
    found = {digest({"a": one}) for one in (tensor, tensor.flip(0), tensor.roll(1), tensor.roll(_CHUNK))}
    assert len(found) == 4


def test_names_shapes_and_dtypes_count_and_order_does_not():
    a, b = torch.ones(4), torch.zeros(2, 2)
    whole = digest({"a": a, "b": b})
    assert whole == digest({"b": b, "a": a})
    others = [{"b": a, "a": b}, {"a": a}, {"a": a.reshape(2, 2), "b": b}, {"a": a, "b": b.int()}]
    assert len({whole, *map(digest, others)}) == 5
    assert digest({}) != whole


def test_layout_does_not_count_and_nothing_is_changed():
    a = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert digest({"a": a.to(memory_format=torch.channels_last)}) == digest({"a": a})
    with torch.inference_mode():
        digest({"a": torch.ones(3)})
    parameter = torch.nn.Parameter(torch.ones(3))
    assert digest({"a": parameter}) == digest({"a": torch.ones(3)})
    assert digest({"a": torch.tensor(3.0)}) != digest({"a": torch.tensor([3.0])})
    assert digest({"a": torch.empty(0)}) == digest({"a": torch.empty(0)})
