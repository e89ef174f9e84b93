"""d2l's Accumulator, Timer and schedulers."""

from __future__ import annotations

import gc
import math
import time
import weakref

import pytest
import torch

import wholebatch as wb
from wholebatch.compat import d2l


def test_sums_are_floats_in_a_list() -> None:
    metric = d2l.Accumulator(3)
    assert metric.data == [0.0, 0.0, 0.0]
    metric.add(3, torch.tensor(7), True)
    metric.add(torch.tensor([5.0]), 8, 1)
    assert metric.data == [8.0, 15.0, 2.0]
    assert [type(one) for one in (*metric, *metric.data, metric[0], *metric[1:])] == [float] * 9
    assert (metric[-1], metric[1:], len(metric), metric.mean()) == (2.0, [15.0, 2.0], 3, 25 / 3)
    assert repr(metric) == "Accumulator(0: 8.0, 1: 15.0, 2: 2.0)"
    both = metric + metric
    assert type(both) is d2l.Accumulator
    assert both.data == [16.0, 30.0, 4.0]
    metric.reset()
    assert metric.data == [0.0, 0.0, 0.0]


def test_a_wrong_number_of_values_is_not_dropped() -> None:
    metric = d2l.Accumulator(2)
    with pytest.raises(wb.InputError, match="takes 2 values; got 3"):
        metric.add(1, 2, 3)
    with pytest.raises(wb.InputError, match="takes 2 values; got 1"):
        metric.add(1)
    assert metric.data == [0.0, 0.0]


def test_the_sums_may_be_set_also_by_a_class_that_was_derived() -> None:
    metric = d2l.Accumulator(2)
    metric.data = [1.0, 2]
    metric.add(0.5, 1)
    assert metric.data == [1.5, 3.0]

    class Own(d2l.Accumulator):
        def __init__(self, n: int) -> None:
            self.data = [0.0] * n

        def add(self, *args: float) -> None:
            self.data = [a + float(b) for a, b in zip(self.data, args, strict=True)]

    own = Own(2)
    own.add(1, 2.5)
    own.add(1, 2.5)
    assert (own.data, own[1]) == ([2.0, 5.0], 5.0)


def test_no_graph_stays_alive() -> None:
    metric = d2l.Accumulator(1)
    weights = torch.ones(3, requires_grad=True)
    loss = (weights * 2).sum()
    held = set()  # which supports weak references, as nodes do not
    node = weakref.ref(held)
    loss.grad_fn.register_hook(lambda *_, held=held: None)
    metric.add(loss)
    animator = d2l.Animator()
    animator.add(1, (loss,))
    del loss, held
    gc.collect()
    assert node() is None
    assert metric[0] == animator.Y[0][0] == 6.0


def test_the_timer_runs_from_its_construction() -> None:
    timer = d2l.Timer()
    assert timer.times == []
    first, second = timer.stop(), timer.stop()  # the book's may be stopped twice
    timer.start()
    third = timer.stop()
    assert 0 < first < second
    assert timer.times == [first, second, third]
    assert timer.sum() == pytest.approx(first + second + third, rel=1e-12)
    assert timer.avg() == pytest.approx(timer.sum() / 3, rel=1e-12)
    assert timer.cumsum() == pytest.approx([first, first + second, timer.sum()], rel=1e-12)


def test_times_are_a_list_that_may_be_changed() -> None:
    timer = d2l.Timer()
    timer.times.append(2.0)
    assert timer.sum() == 2.0
    timer.times = []
    assert timer.stop() == timer.sum()
    timer.times.clear()
    assert timer.cumsum() == []


@pytest.mark.parametrize("make", [d2l.Timer, wb.Timer])
def test_a_stop_costs_the_same_however_many_there_were(make: type[wb.Timer]) -> None:
    timer = make()

    def seconds(count: int) -> float:
        begun = time.thread_time()
        for _ in range(count):
            timer.start()
            timer.stop()
        return time.thread_time() - begun

    first = min(seconds(100) for _ in range(3))
    seconds(3_000)
    later = min(seconds(100) for _ in range(3))
    assert later < 10 * first  # reading all times at every stop makes it a hundred times as much


def test_the_factor_scheduler_decays_with_every_call() -> None:
    scheduler = d2l.FactorScheduler(factor=0.9, stop_factor_lr=1e-2, base_lr=2.0)
    rates = [scheduler(t) for t in range(60)]
    assert rates[0] == 1.8
    assert rates == pytest.approx([max(0.01, 2 * 0.9 ** (t + 1)) for t in range(60)], rel=1e-12)
    assert scheduler.base_lr == rates[-1] == 0.01
    assert d2l.FactorScheduler()(0) == 0.1
    assert (scheduler(0), d2l.FactorScheduler(0.5, 0.0, 1.0)(7)) == (0.01, 0.5)


def test_the_other_schedulers() -> None:
    root = d2l.SquareRootScheduler(lr=0.1)
    assert root.lr == 0.1
    assert [root(t) for t in range(9)] == pytest.approx([0.1 * (t + 1) ** -0.5 for t in range(9)], rel=1e-14)
    assert d2l.SquareRootScheduler()(3) == 0.05
    steps = d2l.MultiFactorScheduler(step=[15, 30], factor=0.5, base_lr=0.5)
    assert [steps(t) for t in range(40)] == [0.5] * 15 + [0.25] * 15 + [0.125] * 10
    cosine = d2l.CosineScheduler(20, warmup_steps=5, base_lr=0.3, final_lr=0.01)
    expected = [0.3 * t / 5 for t in range(5)]
    expected += [0.01 + 0.29 * (1 + math.cos(math.pi * (t - 5) / 15)) / 2 for t in range(5, 21)]
    assert [cosine(t) for t in range(30)] == pytest.approx(expected + [0.01] * 9, abs=1e-15)
    assert (cosine.base_lr_orig, cosine.max_steps, cosine.max_update, cosine.get_warmup_lr(2)) == (0.3, 15, 20, 0.12)
    # the book's training loop tells its own schedulers from torch's by their module
    assert cosine.__module__ != torch.optim.lr_scheduler.__name__
