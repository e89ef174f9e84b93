"""d2l's ``Timer``: the native one, with a plain list of times."""

from __future__ import annotations

from wholebatch.loop import timer


class Timer(timer.Timer):
    """Records times; it runs from its construction, and ``stop`` may be called again without ``start``.

    :class:`wholebatch.Timer` on the host's clock. As in the book every ``stop`` records the time since the last
    ``start``, and ``times`` is a list that may be changed.

    >>> clock = Timer()
    >>> clock.stop() < clock.stop(), len(clock.times)
    (True, 2)
    """

    def __init__(self) -> None:
        super().__init__("cpu")

    @property
    def times(self) -> list[float]:
        """All recorded times, in seconds."""
        return self._laps

    @times.setter
    def times(self, given: list[float]) -> None:
        self._laps = given

    def stop(self, read: bool = True) -> float:
        """Record the time since the last ``start`` and return it in seconds."""
        self._laps.append(self._now() - self._begun)
        return float(self._laps[-1])
