"""Interleaved measuring: noise that comes and goes meets both sides alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def seconds(work: Callable[[], object]) -> float:
    """Time of this thread alone, so that other processes do not count."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


def ratio(ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> float:
    """Return the median time of ``ours`` divided by that of ``bare``, each run once before."""
    ours(), bare()
    gc.collect()
    times = [(seconds(ours), seconds(bare)) for _ in range(rounds)]
    return statistics.median(a for a, _ in times) / statistics.median(b for _, b in times)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that the thread's own time is all of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
