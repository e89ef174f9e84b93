"""What a chart says, before anything is drawn: panels of lines over one x axis.

``figure_of`` (matplotlib) and ``text_chart`` (braille) draw the same :class:`Chart`. A line of any length is drawn
from a bounded number of points (:func:`thin`) that cover the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wholebatch.core.errors import InputError, nearest

Floats = npt.NDArray[np.float64]
Limits = tuple[float | None, float | None]

SCALES = ("linear", "log")


@dataclass(frozen=True)
class Line:
    """One series: ``x`` and ``y`` of the same length, in the order they are joined; a NaN is a gap."""

    label: str
    x: Floats
    y: Floats

    def last(self) -> float | None:
        """The last finite value; None where there is none."""
        finite = self.y[np.isfinite(self.y)]
        return float(finite[-1]) if finite.size else None


@dataclass(frozen=True)
class Panel:
    """Lines over one y axis; ``ylabel`` says what it counts, with the unit."""

    ylabel: str
    lines: list[Line]
    yscale: str = "linear"
    ylim: Limits | None = None


@dataclass(frozen=True)
class Chart:
    """Panels above each other, over one x axis."""

    panels: list[Panel]
    xlabel: str = ""
    title: str = ""
    xscale: str = "linear"
    xlim: Limits | None = None
    whole_x: bool = field(default=False)  # x counts things: no fractions on the axis

    def bounds(self) -> tuple[float, float]:
        """Where the x axis begins and ends."""
        xs = [line.x for panel in self.panels for line in panel.lines]
        return bounds(xs, self.xscale, self.xlim)


def bounds(arrays: list[Floats], scale: str, limits: Limits | None) -> tuple[float, float]:
    """The smallest and the largest of what can be shown, or what ``limits`` say; never the same number twice.

    >>> bounds([np.array([3.0, np.nan]), np.array([1.0])], "linear", None)
    (1.0, 3.0)
    >>> bounds([np.array([0.0, 2.0, 8.0])], "log", (None, 10))
    (2.0, 10.0)
    """
    lows, highs = [], []
    for array in arrays:
        shown = array[np.isfinite(array) & (array > 0)] if scale == "log" else array[np.isfinite(array)]
        if shown.size:
            lows.append(float(shown.min()))
            highs.append(float(shown.max()))
    low, high = (min(lows), max(highs)) if lows else (1.0, 10.0) if scale == "log" else (0.0, 1.0)
    given_low, given_high = limits or (None, None)
    low = low if given_low is None else float(given_low)
    high = high if given_high is None else float(given_high)
    if high > low:
        return low, high
    pad = abs(low) * 0.5 or 0.5
    return (low / 2, low * 2) if scale == "log" else (low - pad, low + pad)


def thin(x: Floats, y: Floats, columns: int, low: float, high: float, scale: str = "linear") -> tuple[Floats, Floats]:
    """Return at most ``16 * columns`` points that look like the line when it is drawn ``columns`` pixels wide.

    Of the points that follow each other within one pixel column the first, the smallest, the largest and the last
    are kept. Where that does not help (x jumps to and fro) the same is done for equally long stretches. A line of
    few points is given back as it is. NaN among other values of a column is passed over.

    >>> x = np.arange(1_000_000.0)
    >>> few = thin(x, np.sin(x), 100, 0, 1e6)[1]
    >>> len(few), bool(few.min() == np.sin(x).min()), bool(few.max() == np.sin(x).max())
    (400, True, True)
    """
    if len(x) <= 4 * columns:
        return x, y
    starts = _runs(x, columns, low, high, scale)
    if len(starts) > 4 * columns:
        starts = np.linspace(0, len(x), 4 * columns, endpoint=False).astype(np.intp)
    ends = np.append(starts[1:], len(x)) - 1
    with np.errstate(invalid="ignore"):
        smallest, largest = np.fmin.reduceat(y, starts), np.fmax.reduceat(y, starts)
    with np.errstate(invalid="ignore"):
        falls = y[starts] > y[ends]  # the largest first then: a path that went to and fro would close a line's dashes
    then, last = np.where(falls, largest, smallest), np.where(falls, smallest, largest)
    xs = np.stack([x[starts], x[starts], x[ends], x[ends]], axis=1).ravel()
    return xs, np.stack([y[starts], then, last, y[ends]], axis=1).ravel()


def _runs(x: Floats, columns: int, low: float, high: float, scale: str) -> npt.NDArray[np.intp]:
    """Where each stretch of points within one pixel column begins."""
    place = x
    if scale == "log":
        with np.errstate(divide="ignore", invalid="ignore"):
            place, low, high = np.log(x), float(np.log(low)), float(np.log(high))
    with np.errstate(invalid="ignore"):
        column = np.clip(np.nan_to_num((place - low) * (columns / (high - low))), -1, columns).astype(np.int32)
    return np.append(0, np.flatnonzero(np.diff(column)) + 1)


def check_scale(name: str, value: Any) -> str:
    """Return a scale that is known.

    Raises:
        InputError: it is not; the nearest is named.
    """
    if value not in SCALES:
        raise InputError(f"{name}={value!r}; expected 'linear' or 'log'{nearest(str(value), SCALES)}")
    return str(value)


def check_limits(name: str, value: Any) -> Limits | None:
    """Return two limits, each a number or None.

    Raises:
        InputError: they are not two, not numbers, or the first is not below the second.
    """
    if value is None:
        return None
    try:
        low, high = (None if one is None else float(one) for one in value)
    except (TypeError, ValueError):
        raise InputError(f"{name}={value!r}; expected two numbers (low, high), None where the data say it") from None
    if low is not None and high is not None and not low < high:
        raise InputError(f"{name}={value!r}; the first must be below the second")
    return low, high
