"""Time that stops where the work does: on the host, or on a device that works behind the host's back."""

from __future__ import annotations

import time
from typing import Any

import torch

from wholebatch.core.errors import InputError


class Timer:
    """Records times; it runs from its construction.

    On a CPU it reads ``time.perf_counter``. For a CUDA device it records events in the current stream, so that
    the time is that of the device's work; they are read when somebody asks, which waits for the device.

    >>> timer = Timer()
    >>> first = timer.stop()
    >>> timer.start()
    >>> second = timer.stop()
    >>> timer.times == [first, second] and timer.sum() == first + second
    True
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._laps: list[Any] = []
        self._begun: Any = None
        self.start()

    def start(self) -> None:
        """Start (again)."""
        self._begun = self._now()

    def stop(self, read: bool = True) -> float | None:
        """Record the time since ``start`` and return it in seconds; with ``read=False`` nothing waits for a device.

        Raises:
            InputError: the timer was stopped already.
        """
        if self._begun is None:
            raise InputError("the timer does not run; call start() before stop()")
        lap: Any = (self._begun, self._now())
        self._laps.append(_seconds(lap) if read else lap)
        self._begun = None
        return self._laps[-1] if read else None

    @property
    def times(self) -> list[float]:
        """All recorded times, in seconds."""
        self._laps = [_seconds(lap) for lap in self._laps]
        return list(self._laps)

    def sum(self) -> float:
        """Return the sum of the times, in seconds."""
        return sum(self.times)

    def avg(self) -> float:
        """Return the mean of the times, in seconds; NaN where there is none."""
        times = self.times
        return sum(times) / len(times) if times else float("nan")

    def cumsum(self) -> list[float]:
        """Return the running sums of the times, in seconds."""
        total, sums = 0.0, []
        for seconds in self.times:
            total += seconds
            sums.append(total)
        return sums

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds(lap: Any) -> float:
    if isinstance(lap, float):
        return lap
    begun, ended = lap
    if isinstance(begun, float):
        return float(ended - begun)
    ended.synchronize()
    return float(begun.elapsed_time(ended) / 1000)
