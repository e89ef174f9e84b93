"""d2l's ``Timer``: the native one, which may be stopped more than once."""

from __future__ import annotations

from wholebatch.loop import timer


class Timer(timer.Timer):
    """Records times; it runs from its construction, and ``stop`` may be called again without ``start``.

    :class:`wholebatch.Timer` on the host's clock. As in the book every ``stop`` records the time since the last
    ``start``.

    >>> clock = Timer()
    >>> clock.stop() < clock.stop(), len(clock.times)
    (True, 2)
    """

    def __init__(self) -> None:
        super().__init__("cpu")

    def stop(self, read: bool = True) -> float | None:
        """Record the time since the last ``start`` and return it in seconds."""
        begun = self._begun
        seconds = super().stop(read)
        self._begun = begun
        return seconds
