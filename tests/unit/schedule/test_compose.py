"""A warm-up before a schedule, and schedules in a row."""

import math
import pickle

import numpy as np
import pytest

from wholebatch.core.errors import ConfigError, InputTypeError
from wholebatch.schedule import (
    ConstantScheduler,
    CosineScheduler,
    FactorScheduler,
    Joined,
    LinearScheduler,
    SquareRootScheduler,
    Warmup,
)


def test_a_warmup_goes_straight_to_the_beginning_of_the_schedule():
    inner = SquareRootScheduler(0.8)
    s = Warmup(inner, 4, begin_lr=0.4)
    assert [s(t) for t in (0, 1, 2, 3.5)] == pytest.approx([0.4, 0.5, 0.6, 0.75], rel=1e-15)
    assert [s(t) for t in (4, 5.5, 100)] == [inner(0), inner(1.5), inner(96)]


def test_a_warmup_of_no_length_is_none():
    assert Warmup(ConstantScheduler(0.3), 0)(0) == 0.3


def test_a_warmup_before_a_cosine_is_the_cosine_with_its_own():
    inside = CosineScheduler(20, 0.3, 0.01, warmup_steps=5, warmup_begin_lr=0.02)
    before = Warmup(CosineScheduler(15, 0.3, 0.01), 5, begin_lr=0.02)
    t = np.linspace(0, 25, 101)
    np.testing.assert_allclose(before(t), inside(t), rtol=1e-14)
    assert before.end == inside.end == 20


def test_joined_schedules_count_from_their_boundaries():
    parts = [LinearScheduler(10, 1.0), FactorScheduler(0.5, 0.8), lambda t: t]
    s = Joined(parts, boundaries=[10, 12.5])
    assert [s(t) for t in (0, 9.5)] == [1.0, parts[0](9.5)]
    assert [s(t) for t in (10, 11, 12.25)] == [0.8, 0.4, parts[1](2.25)]
    assert [s(t) for t in (12.5, 13, 20)] == [0.0, 0.5, 7.5]


def test_where_compositions_end():
    assert Joined([ConstantScheduler(1.0), LinearScheduler(10, 1.0)], [30]).end == 40
    assert Joined([LinearScheduler(10, 1.0)], []).end == 10
    assert Joined([LinearScheduler(10, 1.0), ConstantScheduler(1.0)], [30]).end == math.inf
    assert Warmup(lambda t: 1.0, 5).end == math.inf


def test_functions_are_asked_number_by_number():
    table = [0.3, 0.2, 0.1]
    assert Warmup(lambda t: table[t], 4)(5) == 0.2  # a whole progress stays whole
    s = Joined([ConstantScheduler(1.0), lambda t: 0.5 if t < 2 else 0.25], [3])
    np.testing.assert_array_equal(s(np.arange(6)), [1, 1, 1, 0.5, 0.5, 0.25])


def test_compositions_are_plain_objects():
    s = Joined([Warmup(ConstantScheduler(0.1), 5), LinearScheduler(10, 0.1)], [30])
    assert pickle.loads(pickle.dumps(s)) == s
    assert hash(pickle.loads(pickle.dumps(s))) == hash(s)
    assert eval(repr(s)) == s
    assert s != Joined([Warmup(ConstantScheduler(0.1), 6), LinearScheduler(10, 0.1)], [30])


@pytest.mark.parametrize(
    ("schedules", "boundaries"),
    [(2, []), (2, [1, 2]), (0, []), (1, [1]), (3, [2, 1]), (3, [2, 2]), (2, [0]), (2, [-1]), (2, [math.nan])],
)
def test_boundaries_that_do_not_fit_are_refused(schedules, boundaries):
    with pytest.raises(ConfigError, match="Joined got"):
        Joined([ConstantScheduler(1.0)] * schedules, boundaries)


@pytest.mark.parametrize("steps", [-1, math.nan, math.inf])
def test_a_warmup_that_cannot_be_is_refused(steps):
    with pytest.raises(ConfigError, match="Warmup got steps"):
        Warmup(ConstantScheduler(1.0), steps)
    with pytest.raises(ConfigError, match="Warmup got begin_lr"):
        Warmup(ConstantScheduler(1.0), 5, begin_lr=steps)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(InputTypeError, match="use ConstantScheduler"):
        Warmup(0.1, 5)
    with pytest.raises(InputTypeError, match="at place 1"):
        Joined([ConstantScheduler(1.0), 0.1], [5])
    with pytest.raises(InputTypeError, match="list of schedules"):
        Joined(ConstantScheduler(1.0), [5])
    with pytest.raises(InputTypeError, match="needs a list of numbers for boundaries"):
        Joined([ConstantScheduler(1.0), ConstantScheduler(0.1)], 5)
