"""The shapes without a planned length against their formulas, and what they refuse."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from wholebatch.core.errors import ConfigError, InputTypeError
from wholebatch.schedule import ConstantScheduler, FactorScheduler, MultiFactorScheduler, SquareRootScheduler

OPEN_ENDED = [
    ConstantScheduler(0.3),
    FactorScheduler(0.9, 0.3, 0.01),
    MultiFactorScheduler([15, 30], 0.5, 0.4),
    SquareRootScheduler(0.3),
]


def test_constant():
    assert [ConstantScheduler(0.3)(t) for t in (0, 7.5, math.inf)] == [0.3, 0.3, 0.3]
    assert ConstantScheduler(0.3).end == math.inf


def test_factor_decays_to_its_floor():
    s = FactorScheduler(0.9, 2.0, 1e-2)
    for t in (0, 1, 2, 3.5, 10, 50, 51, 1000):
        assert s(t) == pytest.approx(max(1e-2, 2.0 * 0.9**t), rel=1e-15)
    assert s(100) == s(math.inf) == 1e-2
    assert FactorScheduler(0.1, 1.0)(100) == 1e-7


def test_factor_knows_where_it_reaches_its_floor():
    s = FactorScheduler(0.9, 2.0, 1e-2)
    assert s(s.end) == pytest.approx(1e-2, rel=1e-12)
    assert s(s.end - 1) > 1.05e-2
    assert s(s.end + 1) == 1e-2
    assert FactorScheduler(0.5, 1.0, 0.0).end == math.inf
    assert FactorScheduler(1.0, 1.0).end == math.inf
    assert FactorScheduler(1.5, 1.0).end == math.inf
    assert FactorScheduler(0.5, 0.1, stop_factor_lr=0.2).end == 0
    assert FactorScheduler(0.0, 0.1).end == 0


def test_factors_where_floats_end():
    growing = FactorScheduler(2.0, 1.0)
    assert growing(10) == 1024.0
    assert growing(10_000) == math.inf
    np.testing.assert_array_equal(growing(np.array([10, 10_000])), [1024.0, math.inf])
    still = FactorScheduler(2.0, 0.0, 0.0)
    assert still(10_000) == 0.0
    np.testing.assert_array_equal(still(np.array([10, 10_000])), [0.0, 0.0])
    assert FactorScheduler(0.0, 1.0, 0.25)(0) == 1.0
    assert FactorScheduler(0.0, 1.0, 0.25)(1) == 0.25
    np.testing.assert_array_equal(FactorScheduler(0.1, 1.0, 0.0)(np.array([0, 1e6])), [1.0, 0.0])


def test_multi_factor_drops_at_its_counts():
    s = MultiFactorScheduler([15, 30], 0.5, 0.4)
    assert [s(t) for t in (0, 14, 14.999, 15, 29, 30, 1e9)] == [0.4, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1]
    assert s.end == 30
    assert MultiFactorScheduler([], 0.5, 0.4)(100) == 0.4
    assert MultiFactorScheduler([], 0.5, 0.4).end == math.inf
    assert MultiFactorScheduler([0, 2.5], 0.5, 0.4)(0) == 0.2


def test_square_root():
    for t in (0, 1, 2.5, 3, 99, 1e6):
        assert SquareRootScheduler(0.6)(t) == pytest.approx(0.6 * (t + 1) ** -0.5, rel=1e-15)
    assert SquareRootScheduler(0.6).end == math.inf


@pytest.mark.parametrize("schedule", OPEN_ENDED, ids=lambda s: type(s).__name__)
def test_objects_are_plain(schedule):
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert eval(repr(schedule)) == schedule
    assert all(type(schedule(t)) is float for t in (0, 1, 16, 40, 2.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.base_lr = 1.0


@pytest.mark.parametrize("schedule", OPEN_ENDED, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_negative_and_non_finite_arguments_are_refused(schedule, value):
    for field in dataclasses.fields(schedule):
        given = [value] if field.name == "step" else value
        with pytest.raises(ConfigError, match=rf"{type(schedule).__name__} got {field.name}.*at least 0"):
            dataclasses.replace(schedule, **{field.name: given})


@pytest.mark.parametrize("step", [[30, 15], [15, 15], [1, 2, 2.0]])
def test_counts_that_do_not_increase_are_refused(step):
    with pytest.raises(ConfigError, match="give counts that increase"):
        MultiFactorScheduler(step, 0.5, 0.4)


@pytest.mark.parametrize("step", [15, "15", [None], ["15"]])
def test_counts_that_are_no_numbers_are_refused(step):
    with pytest.raises(InputTypeError, match="MultiFactorScheduler needs a"):
        MultiFactorScheduler(step, 0.5, 0.4)
