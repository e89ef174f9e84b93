"""The planned shapes against their formulas, and what they refuse."""

import dataclasses
import math
import pickle

import numpy as np
import pytest

from wholebatch.core.errors import ConfigError, InputTypeError
from wholebatch.schedule import CosineScheduler, LinearScheduler, PolynomialScheduler, TrapezoidScheduler

BOOK = CosineScheduler(20, warmup_steps=5, base_lr=0.3, final_lr=0.01)
PLANNED = [
    CosineScheduler(20, 0.3, 0.01, 5, 0.02),
    PolynomialScheduler(20, 0.3, 0.01, 2.5, 5, 0.02),
    LinearScheduler(20, 0.3, 0.01, 5, 0.02),
    TrapezoidScheduler(20, 0.3, 5, 6, 0.01, 0.02),
]
PROGRESS = [0, 0.5, 1, 2.5, 4.999, 5, 5.001, 7, 12.5, 13.999, 14, 14.5, 19, 19.999, 20]


class BookCosine:
    """The cosine of Dive into Deep Learning, section 12.11, with its state; asked in increasing order."""

    def __init__(self, max_update, base_lr=0.01, final_lr=0, warmup_steps=0, warmup_begin_lr=0):
        self.base_lr = self.base_lr_orig = base_lr
        self.max_update, self.final_lr = max_update, final_lr
        self.warmup_steps, self.warmup_begin_lr = warmup_steps, warmup_begin_lr
        self.max_steps = max_update - warmup_steps

    def __call__(self, epoch):
        if epoch < self.warmup_steps:
            rise = self.base_lr_orig - self.warmup_begin_lr
            return self.warmup_begin_lr + rise * float(epoch) / float(self.warmup_steps)
        if epoch <= self.max_update:
            angle = math.pi * (epoch - self.warmup_steps) / self.max_steps
            self.base_lr = self.final_lr + (self.base_lr_orig - self.final_lr) * (1 + math.cos(angle)) / 2
        return self.base_lr


def warmed(t, course):
    """The rate with w = 5, base_lr = 0.3, final_lr = 0.01, warmup_begin_lr = 0.02, max_update = 20."""
    if t < 5:
        return 0.02 + (0.3 - 0.02) * t / 5
    return 0.01 + (0.3 - 0.01) * course(t) if t <= 20 else 0.01


COURSES = [
    lambda t: (1 + math.cos(math.pi * (t - 5) / 15)) / 2,
    lambda t: (1 - (t - 5) / 15) ** 2.5,
    lambda t: 1 - (t - 5) / 15,
    lambda t: min(1.0, (20 - t) / 6),
]


@pytest.mark.parametrize(("schedule", "course"), list(zip(PLANNED, COURSES, strict=True)))
def test_each_course_is_its_formula(schedule, course):
    for t in PROGRESS:
        assert schedule(t) == pytest.approx(warmed(t, course), rel=1e-14, abs=1e-16), t


@pytest.mark.parametrize("schedule", PLANNED, ids=lambda s: type(s).__name__)
def test_stays_at_the_final_rate_when_nothing_was_asked_before(schedule):
    for t in (20, 20.5, 21, 40, 1e9, math.inf):
        assert dataclasses.replace(schedule)(t) == 0.01
    assert schedule.end == 20


@pytest.mark.parametrize("schedule", PLANNED, ids=lambda s: type(s).__name__)
def test_asking_changes_nothing(schedule):
    fresh = [dataclasses.replace(schedule)(t) for t in PROGRESS]
    for t in (20, 30, 0, 7):
        schedule(t)
    assert [schedule(t) for t in reversed(PROGRESS)] == fresh[::-1]
    assert (schedule.base_lr, schedule.base_lr_orig, schedule.max_steps) == (0.3, 0.3, 15)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_update": 20},
        {"max_update": 20, "base_lr": 0.3, "final_lr": 0.01},
        {"max_update": 20, "warmup_steps": 5, "base_lr": 0.3, "final_lr": 0.01},
        {"max_update": 20, "warmup_steps": 5, "base_lr": 0.3, "final_lr": 0.01, "warmup_begin_lr": 0.1},
    ],
)
def test_the_cosine_of_the_book(arguments):
    book, ours = BookCosine(**arguments), CosineScheduler(**arguments)
    for t in range(35):
        assert ours(t) == pytest.approx(book(t), rel=1e-15, abs=1e-17), t


def test_values_known_from_the_book():
    assert [BOOK(t) for t in range(6)] == pytest.approx([0, 0.06, 0.12, 0.18, 0.24, 0.3], rel=1e-15)
    assert BOOK(12.5) == pytest.approx(0.155, rel=1e-15)
    assert (BOOK.base_lr, BOOK.final_lr, BOOK.max_update, BOOK.max_steps) == (0.3, 0.01, 20, 15)
    assert (BOOK.warmup_steps, BOOK.warmup_begin_lr, BOOK.base_lr_orig) == (5, 0.0, 0.3)


def test_the_line_of_the_warmup():
    assert [BOOK.get_warmup_lr(t) for t in (0, 2.5, 5, 10)] == [0.0, 0.15, 0.3, 0.6]
    np.testing.assert_array_equal(BOOK.get_warmup_lr(np.array([[0, 5]])), [[0.0, 0.3]])
    bare = CosineScheduler(20, 0.3)
    assert bare.get_warmup_lr(3) == 0.3
    np.testing.assert_array_equal(bare.get_warmup_lr(np.array([0, 3])), [0.3, 0.3])


def test_a_rate_may_rise():
    rising = CosineScheduler(10, base_lr=0.1, final_lr=1.0)
    assert [rising(t) for t in (0, 5, 10)] == pytest.approx([0.1, 0.55, 1.0], rel=1e-15)


def test_trapezoid_at_its_corners():
    s = TrapezoidScheduler(100, 1.0, 10, 20, final_lr=0.5)
    assert [s(t) for t in (0, 5, 10, 79, 80, 90, 99, 100)] == [0, 0.5, 1, 1, 1, 0.75, 0.525, 0.5]
    assert TrapezoidScheduler(10, 1.0, 0, 0)(9.99) == 1.0
    assert TrapezoidScheduler(10, 1.0, 0, 0)(10) == 0.0
    tiny = TrapezoidScheduler(1e5, 1.0, 0, 1e-10)  # 1e5 - 1e-10 rounds to a beginning 1.5e-11 off
    assert tiny(tiny._decay_begin) <= 1.0
    triangle = TrapezoidScheduler(0.3, 1.0, 0.1, 0.2)  # their sum is one rounding above 0.3
    assert (triangle(0.1), triangle(0.3)) == (1.0, 0.0)


def test_objects_are_plain():
    assert repr(BOOK) == (
        "CosineScheduler(max_update=20, base_lr=0.3, final_lr=0.01, warmup_steps=5, warmup_begin_lr=0.0)"
    )
    for schedule in PLANNED:
        again = pickle.loads(pickle.dumps(schedule))
        assert again == schedule
        assert again(7) == schedule(7)
        assert hash(again) == hash(schedule)
        assert dataclasses.replace(schedule, base_lr=0.4) != schedule
    assert LinearScheduler(20, 0.3) != CosineScheduler(20, 0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        BOOK.base_lr = 1.0


@pytest.mark.parametrize("kind", [CosineScheduler, PolynomialScheduler, LinearScheduler])
@pytest.mark.parametrize(("max_update", "warmup_steps"), [(5, 5), (5, 6), (0, 0), (2.5, 2.5)])
def test_a_warmup_as_long_as_training_is_refused(kind, max_update, warmup_steps):
    with pytest.raises(ConfigError, match=r"warmup_steps=.*max_update=.*raise max_update or lower warmup_steps"):
        kind(max_update, 0.1, warmup_steps=warmup_steps)
    with pytest.raises(ConfigError, match="raise max_update or lower"):
        TrapezoidScheduler(max_update, 0.1, warmup_steps, 0)


def test_a_trapezoid_needs_room_for_both_sides():
    assert TrapezoidScheduler(10, 0.1, 5, 5)(5) == 0.1
    with pytest.raises(ConfigError, match=r"warmup_steps=5 and decay_steps=6.*max_update=10"):
        TrapezoidScheduler(10, 0.1, 5, 6)


@pytest.mark.parametrize("schedule", PLANNED, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_negative_and_non_finite_arguments_are_refused(schedule, value):
    for field in dataclasses.fields(schedule):
        with pytest.raises(ConfigError, match=rf"{type(schedule).__name__} got {field.name}=.*at least 0"):
            dataclasses.replace(schedule, **{field.name: value})


@pytest.mark.parametrize("value", ["20", None, True, [20], 1j])
def test_arguments_that_are_no_numbers_are_refused(value):
    with pytest.raises(InputTypeError, match="CosineScheduler needs a number for max_update; got"):
        CosineScheduler(value)


def test_a_power_of_zero_is_refused():
    with pytest.raises(ConfigError, match="ConstantScheduler"):
        PolynomialScheduler(10, 0.1, power=0)


def test_numpy_numbers_become_plain():
    s = CosineScheduler(np.int64(20), np.float64(0.25))
    assert repr(s) == "CosineScheduler(max_update=20, base_lr=0.25, final_lr=0.0, warmup_steps=0, warmup_begin_lr=0.0)"
    assert type(s(3)) is float
