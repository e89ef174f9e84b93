"""How often to save: ``"500 steps"``, ``"10 min"``, ``"2 epochs"``."""

from __future__ import annotations

import math
import re
from typing import Any

from wholebatch.core.errors import ConfigError, InputTypeError, nearest

_UNITS = {
    **dict.fromkeys(["step", "steps"], ("steps", 1)),
    **dict.fromkeys(["epoch", "epochs"], ("epochs", 1)),
    **dict.fromkeys(["s", "sec", "second", "seconds"], ("seconds", 1)),
    **dict.fromkeys(["min", "minute", "minutes"], ("seconds", 60)),
    **dict.fromkeys(["h", "hour", "hours"], ("seconds", 3600)),
}
_EXAMPLES = "write for example '500 steps', '2 epochs', '30 s', '10 min' or '1 h'"
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]+)\s*")


def seconds_of(limit: float | str, name: str = "time_limit") -> float:
    """Return a time in seconds: of a number of them, or of a number and a unit.

    >>> seconds_of(90), seconds_of("2 h")
    (90.0, 7200.0)

    Raises:
        ConfigError: it is no time, or not above 0.
    """
    examples = f"{name}={limit!r}: expected a time above 0, such as 600 (seconds), '30 s', '10 min' or '2 h'"
    if isinstance(limit, str) and not limit.strip().replace(".", "", 1).isdigit():
        try:
            number, counted = _parse(limit)
        except ConfigError:
            raise ConfigError(examples) from None
        if counted != "seconds":
            raise ConfigError(examples)
        return number
    if isinstance(limit, bool) or not isinstance(limit, int | float | str) or not (0 < float(limit) < math.inf):
        raise ConfigError(examples)
    return float(limit)


class Every:
    """When a checkpoint is due.

    Args:
        text: a number and a unit: steps or epochs (whole numbers), or s, min, h.

    Raises:
        ConfigError: it is not such a text; the message shows some that are.

    >>> every = Every("500 steps")
    >>> every.due(499, seconds=10.0), every.due(500, seconds=10.1)
    (False, True)
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.number, self.unit = _parse(text)
        self._last = 0.0  # seconds: when it was due last

    def due(self, step: int, seconds: float, epoch_end: int | None = None) -> bool:
        """Return whether a checkpoint is due after this step; ask once per step.

        Steps and epochs are counted since the run began, resuming included, so that the answer does not depend on
        restarts; time since this process began to train. Clocks of processes differ: let rank 0 ask for all.

        Args:
            step: updates made since the run began, from 1.
            seconds: since training began here.
            epoch_end: the number, from 1, of the epoch that this step ends; None within an epoch.
        """
        if isinstance(epoch_end, bool):
            raise InputTypeError(f"epoch_end={epoch_end}: expected the number of the epoch that ended, or None")
        if self.unit == "steps":
            return step > 0 and step % int(self.number) == 0
        if self.unit == "epochs":
            return epoch_end is not None and epoch_end % int(self.number) == 0
        if seconds - self._last < self.number:
            return False
        self._last = seconds
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Every) and (self.number, self.unit) == (other.number, other.unit)

    def __hash__(self) -> int:
        return hash((self.number, self.unit))

    def __repr__(self) -> str:
        return f"Every({self.text!r})"


def _parse(text: Any) -> tuple[float, str]:
    """The number (in seconds where it is a time) and what it counts."""
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"checkpoint_every={text!r}: expected a number and a unit; {_EXAMPLES}")
    unit = match[2].lower()
    if unit not in _UNITS:
        raise ConfigError(
            f"checkpoint_every={text!r}: there is no unit {match[2]!r}{nearest(unit, _UNITS)}; {_EXAMPLES}"
        )
    counted, factor = _UNITS[unit]
    number = float(match[1]) * factor
    if not (0 < number < math.inf):
        raise ConfigError(f"checkpoint_every={text!r}: expected a number above 0; {_EXAMPLES}")
    if counted != "seconds" and not number.is_integer():
        raise ConfigError(f"checkpoint_every={text!r}: expected a whole number of {counted}; {_EXAMPLES}")
    return number, counted
