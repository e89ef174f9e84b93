"""The timer on the host."""

from __future__ import annotations

import math
import time

import pytest
import torch

import wholebatch as wb


def test_times_add_up():
    timer = wb.Timer()
    time.sleep(0.01)
    first = timer.stop()
    assert first >= 0.01
    timer.start()
    second = timer.stop()
    assert timer.times == [first, second]
    assert (timer.sum(), timer.avg()) == (first + second, (first + second) / 2)
    assert timer.cumsum() == [first, first + second]


def test_a_timer_is_stopped_once():
    timer = wb.Timer()
    assert timer.stop(read=False) is None
    with pytest.raises(wb.InputError, match="call start"):
        timer.stop()
    assert len(timer.times) == 1


def test_no_time_has_no_mean():
    assert math.isnan(wb.Timer().avg())
    assert wb.Timer().sum() == 0


def test_a_device_is_asked_for_events(monkeypatch):
    """The times of a device are those of its events, read when somebody asks."""
    waited = []

    class Event:
        clock = 0.0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            Event.clock += 250.0
            self.at = Event.clock

        def synchronize(self):
            waited.append(self.at)

        def elapsed_time(self, end):
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    timer = wb.Timer("cuda")
    assert timer.stop(read=False) is None
    assert waited == []
    assert timer.sum() == 0.25
    assert timer.sum() == 0.25
    assert waited == [500.0]
