"""What a schedule can be asked with, and what comes back."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from wholebatch.core.errors import InputError, InputTypeError
from wholebatch.schedule import (
    ConstantScheduler,
    CosineScheduler,
    FactorScheduler,
    Joined,
    LinearScheduler,
    MultiFactorScheduler,
    PolynomialScheduler,
    SquareRootScheduler,
    TrapezoidScheduler,
    Warmup,
)

ALL = [
    CosineScheduler(20, 0.3, 0.01, 5, 0.02),
    PolynomialScheduler(20, 0.3, 0.01, 2.5, 5),
    LinearScheduler(20, 0.3, 0.01),
    TrapezoidScheduler(20, 0.3, 5, 6),
    ConstantScheduler(0.3),
    FactorScheduler(0.9, 0.3, 0.1),
    MultiFactorScheduler([3, 15], 0.5, 0.4),
    SquareRootScheduler(0.3),
    Warmup(CosineScheduler(20, 0.3), 4, 0.1),
    Warmup(lambda t: 1 / (1 + t), 4),
    Joined([LinearScheduler(5, 0.3), Warmup(SquareRootScheduler(0.2), 3), ConstantScheduler(0.1)], [5, 12]),
]
each = pytest.mark.parametrize("schedule", ALL, ids=lambda s: type(s).__name__)
PROGRESS = np.array([[0, 0.5, 3, 4, 5], [19.75, 20, 8, 1000, np.inf]])


@each
def test_arrays_are_answered_elementwise(schedule):
    values = schedule(PROGRESS)
    assert values.dtype == np.float64
    assert values.shape == PROGRESS.shape
    one_by_one = [[schedule(t) for t in row] for row in PROGRESS.tolist()]
    np.testing.assert_allclose(values, one_by_one, rtol=1e-15, atol=1e-17)
    np.testing.assert_array_equal(schedule(PROGRESS.T), values.T)


@each
def test_tensors_are_answered_elementwise(schedule):
    values = schedule(torch.from_numpy(PROGRESS))
    assert values.dtype == torch.float64
    np.testing.assert_array_equal(values.numpy(), schedule(PROGRESS))


@each
@pytest.mark.parametrize("kind", ["int8", "int32", "int64", "uint8", "float16", "float32", "float64"])
def test_every_dtype_gives_float64(schedule, kind):
    expected = schedule(np.arange(30.0))
    for given in (np.arange(30).astype(kind), torch.arange(30).to(getattr(torch, kind))):
        values = schedule(given)
        assert type(values) is type(given)
        assert values.dtype in (np.float64, torch.float64)
        np.testing.assert_array_equal(np.asarray(values), expected)


@each
def test_no_dimension_and_no_element(schedule):
    for given in (np.array(7), torch.tensor(7), torch.tensor(7.0, requires_grad=True)):
        value = schedule(given)
        assert value.shape == ()
        assert type(value) is type(given)
        assert float(value) == pytest.approx(schedule(7), rel=1e-15)
    assert schedule(np.empty((0, 3))).shape == (0, 3)
    assert schedule(torch.empty(0)).shape == (0,)


@each
def test_numbers_give_plain_floats(schedule):
    for seven in (7, 7.0, np.int64(7), np.float32(7), np.float64(7), Fraction(7)):
        value = schedule(seven)
        assert type(value) is float
        assert value == schedule(7)


def test_the_argument_is_left_as_it_is():
    given = np.arange(5.0)
    schedule = LinearScheduler(4, 1.0)
    schedule(given)[:] = 9
    np.testing.assert_array_equal(given, np.arange(5.0))
    np.testing.assert_array_equal(schedule(given), [1, 0.75, 0.5, 0.25, 0])


@each
@pytest.mark.parametrize("t", [-1, -1e-9, float("nan"), -np.inf, np.float32(-1), np.int64(-1)])
def test_progress_that_cannot_be_is_refused(schedule, t):
    for given in (t, np.array([[0, t]]), torch.tensor([0, t]), torch.tensor(t)):
        with pytest.raises(InputError, match="counts from 0"):
            schedule(given)


def test_the_message_names_the_place():
    with pytest.raises(InputError, match=r"-2\.0\D* at place 3 of 4"):
        ConstantScheduler(1.0)(np.array([[0, 1], [3, -2]]))


@pytest.mark.parametrize("t", ["1", None, [1, 2], (1,), 1j, np.array(["1"]), np.array([1j]), torch.tensor([1j])])
def test_what_is_no_progress_is_refused(t):
    with pytest.raises(InputTypeError, match="progress"):
        ConstantScheduler(1.0)(t)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@each
def test_a_tensor_stays_on_its_device(schedule):
    values = schedule(torch.from_numpy(PROGRESS).cuda())
    assert values.is_cuda
    assert values.dtype == torch.float64
    np.testing.assert_array_equal(values.cpu().numpy(), schedule(PROGRESS))
