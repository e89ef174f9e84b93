"""Batches made in worker processes, in the order in which they were asked for.

The processes, their queues and the pinned memory are those of ``torch.utils.data.DataLoader``. Here are the order, the
errors that name their sample, signals, and the end: no worker outlives what it works for.
"""

from __future__ import annotations

import os
import signal
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from wholebatch.core.errors import DataError
from wholebatch.data.ahead import Ahead
from wholebatch.data.fetch import Fetch

Place = tuple[int, int, int]  # where a batch begins in its epoch; which of its samples, start and stop
Task = tuple[int, list[int]]  # the epoch, and the numbers of the samples
Plan = Callable[[], Iterable[tuple[Place, Task]]]

_KILLED_AFTER = 5.0  # seconds that a worker has to end by itself


class Workers:
    """Processes that make batches; started when they are first needed, kept from one epoch to the next.

    Args:
        fetch: makes a batch.
        count: how many processes, at least 1.
    """

    def __init__(self, fetch: Fetch, count: int) -> None:
        self._held = _Held(os.getpid())
        self._fetch, self.count = fetch, count
        self._stop = weakref.finalize(self, _close, self._held)  # at the interpreter's end as well

    def begin(self, plan: Plan, device: torch.device | None) -> Ready:
        """Start on the batches of ``plan``, an epoch's in their order; an earlier plan is dropped.

        Args:
            plan: gives the places and tasks; called twice, with the same result.
            device: where batches are to go: pinned memory, and one batch ahead, where it is a GPU.
        """
        held, on_gpu = self._held, device is not None and device.type == "cuda"
        if held.ready is not None:
            held.ready.drop()
        if held.loader is not None and held.loader.pin_memory != on_gpu:
            self.close()
        if held.loader is None:
            held.order = _Order()
            held.loader = _loader(self._fetch, self.count, held.order, on_gpu)
        assert held.order is not None
        held.order.plan = plan
        with _without_advice(), _signals_held():
            made = iter(held.loader)
        held.iterator = made
        ahead = Ahead(made, device) if device is not None and on_gpu else None
        held.ready = Ready((place for place, _ in plan()), made if ahead is None else ahead, ahead)
        return held.ready

    def close(self) -> None:
        """End the processes. They start anew when they are needed again."""
        _close(self._held)


class Ready:
    """The batches of one plan, as they arrive."""

    def __init__(self, places: Iterator[Place], batches: Iterator[Any], ahead: Ahead | None) -> None:
        self._places, self._batches, self._ahead = places, batches, ahead
        self._next = next(places, None)

    def get(self, place: Place) -> Any:
        """Return the batch at ``place``, or None where it is behind, or none of the plan: who asks must make it then.

        Batches before it are dropped.

        Raises:
            DataError: one of its samples cannot be read.
        """
        while self._next is not None and self._next < place:
            self._step()
        return self._step() if self._next == place else None

    def drop(self) -> None:
        """Give nothing any more."""
        self._next = None
        if self._ahead is not None:
            self._ahead.close()

    def _step(self) -> Any:
        self._next = next(self._places, None)
        try:
            batch = next(self._batches)
        except RuntimeError as error:
            if "worker" not in str(error).lower():
                raise
            reason = " ".join(str(error).split())
            raise DataError(f"a worker process ended: {reason}; memory may be short, so try fewer workers") from error
        if isinstance(batch, _Failure):
            failure = DataError(batch.message)
            failure.add_note(f"In a worker process:\n{batch.trace}")
            raise failure
        return batch


@dataclass
class _Held:
    """What must be given back; it does not know who holds it."""

    process: int
    loader: DataLoader[Any] | None = None
    order: _Order | None = None
    iterator: Any = None
    ready: Ready | None = None


class _Order:
    """The tasks of the current plan, anew for every epoch."""

    plan: Plan

    def __iter__(self) -> Iterator[Task]:
        return (task for _, task in self.plan())


class _Tasks(Dataset[Any]):
    """What a worker does with a task."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch

    def __getitem__(self, task: Task) -> Any:
        try:
            return self.fetch(*task)
        except Exception as error:  # it must travel whatever it is, so it travels as text
            message = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            return _Failure(message, traceback.format_exc())


@dataclass(frozen=True)
class _Failure:
    message: str
    trace: str


def _loader(fetch: Fetch, count: int, order: _Order, pin: bool) -> DataLoader[Any]:
    with _without_advice():
        return DataLoader(
            _Tasks(fetch),
            batch_size=None,
            sampler=order,
            num_workers=count,
            collate_fn=_as_it_is,
            pin_memory=pin,
            persistent_workers=True,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # so that it draws nothing from the caller's
        )


@contextmanager
def _without_advice() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*suggested max number of worker")  # the number was asked for
        # Python 3.12 and later warn of every fork beside a thread; torch's workers have always lived with it.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        yield


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _signals_held() -> Iterator[None]:
    """What comes meanwhile is delivered afterwards: to a worker, not before it knows what to ignore."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ignored())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(number: int) -> None:
    """Signals that are sent to a whole group of processes are the first one's affair: it ends its workers itself."""
    for ignored in _ignored():
        signal.signal(ignored, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ignored())


def _ignored() -> list[signal.Signals]:
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def _close(held: _Held) -> None:
    if held.process != os.getpid():  # a copy of it in a worker
        return
    ready, iterator = held.ready, held.iterator
    held.ready = held.iterator = held.loader = held.order = None
    if ready is not None:
        ready.drop()
    if iterator is None:
        return
    workers = list(iterator._workers)
    iterator._shutdown_workers()  # lets them finish what they are at, for some seconds
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join(_KILLED_AFTER)
