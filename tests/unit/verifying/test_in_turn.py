"""Ranks in one process: they take turns, add in rank order, and end when one fails."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from wholebatch.core.processes import Processes, current
from wholebatch.verifying.in_turn import Rank, in_turn


def test_it_keeps_the_protocol_and_is_taken_as_it_is() -> None:
    def work(rank: Rank) -> bool:
        return isinstance(rank, Processes) and current(rank) is rank

    assert in_turn(2, work) == [True, True]


def test_sums_copies_and_gathers() -> None:
    def work(rank: Rank) -> Any:
        tensor = torch.full((2,), float(10**rank.rank))
        rank.begin_sum_(tensor).wait()
        other = torch.full((2,), float(rank.rank + 5))
        rank.copy_from_first_(other)
        return tensor.tolist(), other.tolist(), rank.exchange(rank.rank), rank.gather({"rank": rank.rank})

    everyones = [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert in_turn(3, work) == [([111.0, 111.0], [5.0, 5.0], [0, 1, 2], everyones)] * 3


def test_no_two_ranks_run_at_once() -> None:
    running: list[int] = []
    worst = 0

    def work(rank: Rank) -> None:
        nonlocal worst
        for _ in range(20):
            running.append(rank.rank)
            worst = max(worst, len(running))
            threading.Event().wait(0.0005)
            running.remove(rank.rank)
            rank.exchange(0)

    in_turn(4, work)
    assert worst == 1


def test_a_rank_that_fails_ends_all() -> None:
    def work(rank: Rank) -> None:
        if rank.rank == 1:
            raise ValueError("mine")
        rank.exchange(0)

    with pytest.raises(ValueError, match="mine"):
        in_turn(3, work)


def test_gradients_are_on_where_they_are_outside() -> None:
    assert in_turn(2, lambda rank: torch.is_grad_enabled()) == [True, True]
    with torch.no_grad():
        assert in_turn(2, lambda rank: torch.is_grad_enabled()) == [False, False]


def test_a_rank_that_ends_before_a_collective_is_said() -> None:
    def work(rank: Rank) -> None:
        if rank.rank != 1:
            rank.exchange(0)

    with pytest.raises(RuntimeError, match="rank 0 waits at its collective 1 for a rank that has ended"):
        in_turn(3, work)


def test_what_is_gathered_is_everyones_own() -> None:
    def work(rank: Rank) -> list[list[int]]:
        mine = [rank.rank]
        everyones = rank.gather(mine)
        mine.append(99)
        return everyones

    assert in_turn(2, work) == [[[0], [1]]] * 2
