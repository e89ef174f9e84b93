"""What workers tell each other when they meet, in one process that has all of them."""

from __future__ import annotations

import pytest

from wholebatch.core.processes import Alone
from wholebatch.parallel.meeting import SinceMeeting, reported


def test_what_is_told_once_is_not_told_again_but_a_round_goes_on() -> None:
    since = SinceMeeting(Alone(), range(2), 2)
    assert since.shares == {0: 0.5, 1: 0.5}
    since.add(0, reported(2.0, 3.0, 3, 1))
    since.add(1, reported(0.5, 1.0, 1, 2))
    met = since.meet(4)
    assert (float(met.loss_sum), met.weight, met.samples, met.micro_batches) == (2.5, 4.0, 4, 3)
    assert since.shares == {0: 0.75, 1: 0.25}
    since.add(1, reported(1.0, 2.0, 2, 1))
    met = since.meet(2)
    assert (float(met.loss_sum), met.weight, met.micro_batches) == (1.0, 2.0, 1)
    assert since.shares == {0: 0.5, 1: 0.5}
    since.begin_round()
    since.add(1, reported(1.0, 2.0, 2, 1))
    since.meet(2)
    assert since.shares == {0: 0.0, 1: 1.0}


def test_a_failure_is_raised_when_they_meet() -> None:
    since = SinceMeeting(Alone(), range(1), 1)
    since.error = ArithmeticError("a number too large")
    with pytest.raises(ArithmeticError, match="a number too large"):
        since.meet(0)
