"""Several ranks in one process, one at a time: the code of several processes, their sums handed over in memory.

Every rank runs in a thread of its own and holds the turn until it comes to a collective, where it leaves its
part and passes the turn on. So no two ranks run at once, and what is global to a process (generators, replaced
functions) is never shared. It shows whether the parts add up; whether messages arrive is gloo's and NCCL's affair.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Rank:
    """One of the ranks; keeps the protocol of :class:`wholebatch.core.processes.Processes`."""

    group = None

    def __init__(self, rank: int, turns: _Turns) -> None:
        self.rank, self.size = rank, turns.size
        self._turns = turns
        self._round = 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` over all ranks, in place."""
        parts = self._everyones(tensor.detach().clone())
        with torch.no_grad():
            tensor.zero_()
            for part in parts:
                tensor.add_(part)
        return tensor

    def begin_sum_(self, tensor: Tensor) -> _Done:
        """Add ``tensor`` over all ranks at once, in place."""
        self.sum_(tensor)
        return _Done()

    def copy_from_first_(self, tensor: Tensor) -> None:
        """Make ``tensor`` what it is on rank 0, in place."""
        first = self._everyones(tensor.detach().clone())[0]
        with torch.no_grad():
            tensor.copy_(first)

    def exchange(self, number: int) -> list[int]:
        """Return every rank's ``number``."""
        return self._everyones(number)

    def gather(self, item: Any) -> list[Any]:
        """Return every rank's ``item``."""
        return self._everyones(copy.deepcopy(item))

    def _everyones(self, item: T) -> list[T]:
        self._round += 1
        return self._turns.everyones(self.rank, self._round, item)


class _Done:
    def wait(self) -> None:
        """Return at once."""


class _Turns:
    """Who runs now, and what every rank left at each collective."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._turn = 0
        self._gone: set[int] = set()
        self._left: dict[int, dict[int, Any]] = {}
        self._changed = threading.Condition()

    def wait(self, rank: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == rank)

    def pass_on(self, rank: int, gone: bool = False) -> None:
        with self._changed:
            if gone:
                self._gone.add(rank)
            others = [(rank + step) % self.size for step in range(1, self.size + 1)]
            self._turn = next((other for other in others if other not in self._gone), -1)
            self._changed.notify_all()

    def everyones(self, rank: int, number: int, item: Any) -> list[Any]:
        left = self._left.setdefault(number, {})
        left[rank] = item
        if len(left) < self.size:
            self.pass_on(rank)
            self.wait(rank)
        if len(left) < self.size:
            raise RuntimeError(f"rank {rank} waits at its collective {number} for a rank that has ended")
        return [left[other] for other in range(self.size)]


def in_turn(size: int, work: Callable[[Rank], T]) -> list[T]:
    """Run ``work(rank)`` for every rank and return what they return, in rank order.

    >>> in_turn(3, lambda rank: sum(rank.exchange(rank.rank * 10)))
    [30, 30, 30]

    Raises:
        Exception: what the first rank that failed by itself raised.
    """
    turns = _Turns(size)
    results: dict[int, T] = {}
    errors: list[Exception] = []
    gradients = torch.is_grad_enabled()

    def run(rank: int) -> None:
        turns.wait(rank)
        try:
            with torch.set_grad_enabled(gradients):
                results[rank] = work(Rank(rank, turns))
        except Exception as error:
            errors.append(error)
        finally:
            turns.pass_on(rank, gone=True)

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(size)]
