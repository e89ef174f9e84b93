"""How numbers are written for people: short, of steady width, never an error.

Whatever cannot be written as a number (None, a text) is written as ``?``, because a line that is
only looked at must not stop a training run.
"""

from __future__ import annotations

import math

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def _float(value: object) -> float | None:
    """``value`` as a float, or None where it is no number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def number(value: object) -> str:
    """A loss or a learning rate: four decimals where they say something, else an exponent.

    >>> number(0.21434), number(0.05), number(1e-5), number(0), number(float("nan"))
    ('0.2143', '0.0500', '1.00e-05', '0.0000', 'nan')
    >>> number(12345.678), number(1e9), number(None)
    ('12,345.7', '1.00e+09', '?')
    """
    x = _float(value)
    if x is None:
        return "?"
    size = abs(x)
    if not math.isfinite(x) or size == 0 or 1e-3 <= size < 1e3:
        return f"{x:.4f}"
    return f"{x:,.1f}" if 1e3 <= size < 1e6 else f"{x:.2e}"


def percent(value: object) -> str:
    """A part of one in hundredths.

    >>> percent(0.9412), percent(0.05), percent(1), percent(float("nan")), percent(None)
    ('94.12 %', ' 5.00 %', '100.00 %', 'nan %', '?')
    """
    x = _float(value)
    if x is None:
        return "?"
    return f"{100 * x:5.2f} %" if math.isfinite(x) else f"{x} %"


def rate(value: object) -> str:
    """How many a second; decimals only below ten.

    >>> rate(12340.4), rate(87.6), rate(3.21), rate(None)
    ('12,340', '88', '3.2', '?')
    """
    x = _float(value)
    if x is None or not math.isfinite(x):
        return "?"
    return f"{x:.1f}" if abs(x) < 10 else f"{x:,.0f}"


def short_rate(value: object) -> str:
    """The same in at most five characters.

    >>> short_rate(12340.4), short_rate(870), short_rate(3.21), short_rate(2.5e6)
    ('12k', '870', '3.2', '2.5M')
    """
    x = _float(value)
    if x is None or not math.isfinite(x):
        return "?"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.1f}{unit}" if abs(x) < 10 * size else f"{x / size:.0f}{unit}"
    return rate(x)


def seconds(value: object) -> str:
    """A length of time, in whole seconds.

    >>> seconds(7.4), seconds(59.6), seconds(187), seconds(3753), seconds(93784), seconds(None)
    ('7 s', '1:00', '3:07', '1:02:33', '1 d 02:03', '?')
    """
    x = _float(value)
    if x is None or not math.isfinite(x) or x < 0:
        return "?"
    whole = round(x)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}:{whole % _MINUTE:02d}"
    hours, minutes = whole // _HOUR, whole % _HOUR // _MINUTE
    if whole < _DAY:
        return f"{hours}:{minutes:02d}:{whole % _MINUTE:02d}"
    return f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"
