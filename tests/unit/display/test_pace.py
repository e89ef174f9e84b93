import pytest

from wholebatch.core.record import Progress, RunShape
from wholebatch.display.pace import Pace


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def _progress(epoch, step, place, samples):
    return Progress(epoch, step, place, samples, dict)


def _run(epochs=3, steps=4):
    return RunShape(epochs, steps, None, 10, "cpu")


def _epoch(pace, clock, epoch, step=2.0, evaluation=6.0, seconds=None):
    for place in range(1, 5):
        clock.now += step
        pace.step(_progress(epoch, 4 * (epoch - 1) + place, place, 10 * (4 * (epoch - 1) + place)))
    record = {"kind": "epoch", "split": "train", "epoch": epoch, "samples": 40 * epoch}
    speed = pace.record(record if seconds is None else {**record, "seconds": seconds})
    clock.now += evaluation
    pace.record({**record, "split": "test"})
    return speed


def test_nothing_is_known_at_first():
    clock = Clock()
    pace = Pace(_run(), clock)
    assert pace.speed() is None
    assert pace.left() is None
    pace.step(_progress(1, 1, 1, 10))
    assert pace.speed() is None
    assert pace.left() is None


def test_speed_is_that_of_the_present_epoch():
    clock = Clock()
    pace = Pace(_run(), clock)
    _epoch(pace, clock, 1)
    assert pace.speed() == 5  # of the finished epoch
    for place in (1, 2, 3):
        clock.now += 1.0
        pace.step(_progress(2, 4 + place, place, 40 + 10 * place))
    assert pace.speed() == 10


def test_the_speed_of_an_epoch_leaves_the_evaluation_out():
    clock = Clock()
    pace = Pace(_run(), clock)
    assert [_epoch(pace, clock, epoch) for epoch in (1, 2, 3)] == [5, 5, 5]
    assert _epoch(Pace(_run(), clock), clock, 1, seconds=4.0) == 10


def test_a_resumed_run_counts_its_own_samples():
    clock = Clock()
    pace = Pace(_run(), clock)
    for step in (7, 8):  # the second half of epoch 2
        clock.now += 1.0
        pace.step(_progress(2, step, step - 4, 10 * step))
    assert pace.record({"kind": "epoch", "split": "train", "epoch": 2, "samples": 80}) == 10


def test_time_left_counts_evaluations():
    clock = Clock()
    pace = Pace(_run(), clock)
    _epoch(pace, clock, 1)
    assert pace.left() == pytest.approx(8 * 12 / 3)  # 3 steps after the first took 12 s, 8 are left
    _epoch(pace, clock, 2)
    _epoch(pace, clock, 3)
    assert pace.left() == 0


def test_an_unknown_number_of_steps_is_learnt():
    clock = Clock()
    pace = Pace(_run(steps=None), clock)
    clock.now += 1.0
    pace.step(_progress(1, 1, 1, 10))
    pace.step(_progress(1, 2, 2, 20))
    assert pace.left() is None
    pace.record({"kind": "epoch", "split": "train", "epoch": 1, "samples": 20})
    assert pace.steps_per_epoch == 2
    assert pace.left() is not None
