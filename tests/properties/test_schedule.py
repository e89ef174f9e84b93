"""What holds of every schedule, whatever its arguments."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

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
    attach,
    scale_lr,
)

quick = settings(deadline=None, max_examples=80)
rates = st.floats(0, 10, allow_subnormal=False)
lengths = st.one_of(st.integers(1, 10_000), st.floats(1e-3, 1e5))
parts = st.floats(0, 0.99)
progress = st.one_of(st.integers(0, 20_000), st.floats(0, 2e5))


@st.composite
def planned(draw):
    """A planned shape, with a warm-up or without one."""
    length = draw(lengths)
    warmup = length * draw(st.one_of(st.just(0.0), parts))
    base, final, begin = draw(rates), draw(rates), draw(rates)
    kind = draw(st.sampled_from([CosineScheduler, PolynomialScheduler, LinearScheduler, TrapezoidScheduler]))
    if kind is TrapezoidScheduler:
        decay = (length - warmup) * draw(st.floats(0, 1))
        return kind(length, base, warmup, decay, final, begin)
    more = {"power": draw(st.floats(0.1, 5))} if kind is PolynomialScheduler else {}
    return kind(length, base, final, warmup_steps=warmup, warmup_begin_lr=begin, **more)


@st.composite
def open_ended(draw):
    """A shape without a length that does not grow."""
    base = draw(rates)
    return draw(
        st.one_of(
            st.just(ConstantScheduler(base)),
            st.just(SquareRootScheduler(base)),
            st.builds(FactorScheduler, st.floats(0, 1), st.just(base), st.floats(0, base)),
            st.builds(
                MultiFactorScheduler,
                st.sets(st.integers(0, 1000), max_size=5).map(sorted),
                st.floats(0, 1),
                st.just(base),
            ),
        )
    )


shapes = st.one_of(planned(), open_ended())


@st.composite
def joined(draw):
    """Schedules in a row."""
    schedules = draw(st.lists(shapes, min_size=1, max_size=4))
    gaps = draw(st.lists(st.integers(1, 2000), min_size=len(schedules) - 1, max_size=len(schedules) - 1))
    return Joined(schedules, np.cumsum(gaps).tolist() if gaps else [])


everything = st.one_of(shapes, st.builds(Warmup, shapes, lengths, rates), joined())


@quick
@given(planned(), progress)
def test_a_planned_rate_stays_between_its_extremes(schedule, t):
    named = [schedule.base_lr, schedule.final_lr] + ([schedule.warmup_begin_lr] if schedule.warmup_steps else [])
    slack = 1e-14 * max(named)
    assert min(named) - slack <= schedule(t) <= max(named) + slack


@quick
@given(open_ended(), progress, progress)
def test_an_open_ended_rate_never_rises(schedule, t, u):
    early, late = sorted((t, u))
    assert 0 <= schedule(late) <= schedule(early) <= schedule.base_lr * (1 + 1e-15)


@quick
@given(planned())
def test_a_planned_rate_has_no_jump_at_the_end_of_its_warmup(schedule):
    w = float(schedule.warmup_steps)
    assume(w > 1e-6)
    scale = 1e-6 * max(schedule.base_lr, schedule.warmup_begin_lr, schedule.final_lr, 1e-300)
    assert schedule(w * (1 - 1e-9)) == pytest.approx(schedule.base_lr, abs=scale)
    if not (isinstance(schedule, TrapezoidScheduler) and schedule.decay_steps < schedule.max_update):
        assert schedule(w) == pytest.approx(schedule.base_lr, abs=scale)
    else:
        assert schedule(min(w, schedule._decay_begin)) == pytest.approx(schedule.base_lr, abs=scale)


@quick
@given(everything, progress)
def test_after_its_end_a_schedule_repeats_its_last_value(schedule, extra):
    assume(math.isfinite(schedule.end))
    last = schedule(schedule.end + 1e-9 * (1 + schedule.end))
    assert schedule(schedule.end + 1 + extra) == pytest.approx(last, rel=1e-6, abs=1e-12)


@quick
@given(everything, st.lists(progress, max_size=12))
def test_arrays_and_tensors_equal_numbers(schedule, ts):
    one_by_one = [schedule(t) for t in ts]
    assert all(type(value) is float for value in one_by_one)
    array = np.array(ts, dtype=np.float64)
    np.testing.assert_allclose(schedule(array), one_by_one, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(schedule(torch.from_numpy(array)).numpy(), schedule(array))


@quick
@given(everything, st.lists(progress, max_size=6), progress)
def test_what_was_asked_before_does_not_matter(schedule, before, t):
    fresh = schedule(t)
    for one in before:
        schedule(one)
    assert schedule(t) == fresh


@quick
@given(shapes, st.integers(1, 1000), rates, st.integers(0, 5000))
def test_a_warmup_only_shifts_its_schedule(schedule, steps, begin, t):
    s = Warmup(schedule, steps, begin)
    assert s(steps + t) == schedule(t)
    low, high = sorted((begin, schedule(0)))
    assert low - 1e-14 * high <= s(min(t, steps - 1)) <= high * (1 + 1e-14)
    assert s(0) == begin
    assert s(steps * (1 - 1e-9)) == pytest.approx(schedule(0), abs=1e-6 * max(high, 1e-300))


@quick
@given(joined(), st.integers(0, 10_000))
def test_joined_schedules_equal_their_parts(schedule, t):
    start, part = 0, schedule.schedules[0]
    for boundary, following in zip(schedule.boundaries, schedule.schedules[1:], strict=True):
        if t >= boundary:
            start, part = boundary, following
    assert schedule(t) == part(t - start)


@quick
@given(everything)
def test_a_repr_is_the_schedule(schedule):
    assert eval(repr(schedule)) == schedule


@settings(deadline=None, max_examples=30)
@given(everything, st.lists(st.floats(1e-6, 10), min_size=1, max_size=4), st.integers(0, 30))
def test_attached_groups_keep_their_ratios(schedule, initial, steps):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in initial]
    optimizer = torch.optim.SGD(groups)
    lrs = attach(schedule, optimizer)
    for _ in range(steps):
        optimizer.step()
        lrs.step()
    expected = [schedule(steps) * rate / max(initial) for rate in initial]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-15, abs=1e-300)


@quick
@given(st.floats(1e-6, 10), st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from(["linear", "sqrt"]))
def test_scaling_there_and_back_is_nothing(lr, a, b, rule):
    there = scale_lr(lr, batch_size=a, reference=b, rule=rule)
    assert scale_lr(there, batch_size=b, reference=a, rule=rule) == pytest.approx(lr, rel=1e-14)
