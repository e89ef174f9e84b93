import math

import numpy as np
import pytest
import torch

from wholebatch import InputError, InputTypeError, Mean

NAN = float("nan")


def test_unweighted_elements_weigh_one() -> None:
    mean = Mean()
    assert math.isnan(mean.value)
    assert mean.weight == 0
    mean.add(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    mean.add(torch.tensor(8, dtype=torch.int32))
    mean.add(4)
    mean.add(np.array([1.0, 2.0]))
    assert (mean.value, mean.weight) == (27 / 8, 8)
    assert repr(mean) == "Mean(value=3.375, weight=8)"


def test_a_deferred_value_is_a_copy() -> None:
    mean, loss = Mean(), torch.zeros(())
    for i in range(100):
        loss.fill_(i)
        mean.add(loss)
    assert mean.value == 49.5


@pytest.mark.parametrize("value", [torch.tensor(3.0), 3.0, torch.tensor(3, dtype=torch.int16), np.float32(3.0)])
@pytest.mark.parametrize("weight", [2, 2.0, torch.tensor(2), torch.tensor(2.0), np.int64(2), np.array(2.0)])
def test_one_value_with_any_kind_of_weight(value: object, weight: object) -> None:
    mean = Mean()
    mean.add(6.0)
    mean.add(value, weight)
    assert (mean.value, mean.weight) == (4.0, 3)


def test_a_weight_belongs_to_every_element() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    for weight, expected in [
        (3, (2.75, 12)),
        (torch.tensor(3), (2.75, 12)),
        (torch.tensor([1, 3]), (27 / 8, 8)),  # per sample: leading axis, not the trailing one
        (torch.tensor([[1.0, 0.0], [0.0, 0.5]]), (3.5 / 1.5, 1.5)),
        (torch.tensor([[True, False], [False, True]]), (3.0, 2)),
    ]:
        mean = Mean()
        mean.add(values, weight)
        assert (mean.value, mean.weight) == pytest.approx(expected, rel=1e-15)


def test_the_mask_hides_nan_and_infinity() -> None:
    values = torch.tensor([[1.0, NAN], [float("inf"), 5.0], [NAN, NAN]])
    mean = Mean()
    mean.add(values, mask=torch.tensor([[True, False], [False, True], [False, False]]))
    mean.add(values, weight=2, mask=torch.tensor([[True, False], [False, False], [False, False]]))
    assert (mean.value, mean.weight) == (8 / 4, 4)
    rows = Mean()
    rows.add(torch.tensor([[1.0, 2.0], [NAN, NAN]]), mask=torch.tensor([True, False]))
    rows.add(torch.tensor([7.0, NAN]), weight=torch.tensor([2.0, 0.0]))
    rows.add(NAN, weight=0)
    rows.add(torch.tensor([NAN]), weight=0.0)
    assert (rows.value, rows.weight) == (17 / 4, 4)
    rows.add(torch.tensor([NAN]), mask=[True])  # type: ignore[arg-type]
    assert math.isnan(rows.value)


def test_products_are_made_in_float64() -> None:
    mean = Mean()
    mean.add(torch.full((4096,), 60.0, dtype=torch.float16), weight=torch.full((4096,), 60.0, dtype=torch.float16))
    assert (mean.value, mean.weight) == (60.0, 245_760)
    mean.reset()
    mean.add(torch.tensor(0.1), weight=3)
    assert mean.value == pytest.approx(float(np.float32(0.1)), rel=1e-15)


@pytest.mark.parametrize("shape", [(2,), (3, 1), (1, 2), (3, 2, 1), (1,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    values = torch.ones(3, 2)
    with pytest.raises(InputError, match=r"weight of shape .* does not fit value of shape"):
        Mean().add(values, weight=torch.ones(shape))
    with pytest.raises(InputError, match=r"mask of shape .* does not fit value of shape"):
        Mean().add(values, mask=torch.ones(shape, dtype=torch.bool))


def test_wrong_kinds_are_refused() -> None:
    with pytest.raises(InputTypeError, match=r"mask\.bool\(\)"):
        Mean().add(torch.ones(2), mask=torch.ones(2))
    for value, weight in [("a", 1), (1.0, "a"), (torch.tensor(1j), 2), (torch.ones(2), torch.ones(2) * 1j), ([1.0], 1)]:
        mean = Mean()
        with pytest.raises(InputTypeError):
            mean.add(value, weight)
        assert mean.weight == 0


def test_merge_state_and_copies() -> None:
    a, b = Mean(), Mean()
    for _ in range(50):
        a.add(torch.tensor(1.0), weight=3)
        b.add(torch.tensor([5.0]), weight=torch.tensor([1.0]))
    both = a + b
    assert (both.value, both.weight) == (2.0, 200)
    assert (both.all_reduce().value, (both + Mean()).value, (Mean() + both).weight) == (2.0, 2.0, 200)
    c = Mean()
    c.load_state_dict(both.state_dict())
    c.add(torch.tensor(2.0 + 201))
    assert (c.value, c.weight) == (603 / 201, 201)
    c.reset()
    assert math.isnan(c.value)
    with pytest.raises(InputError):
        c.load_state_dict({})
