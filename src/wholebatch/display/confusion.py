"""A confusion matrix as a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LONGEST = 18  # characters of a class's name
_NUMBERED = 25  # classes up to which a cell has room for its count
_NAMED = 120  # classes up to which each name is written; beyond, some of them
_SPARSE = 40  # names written then
_DARK = 0.55  # of the colours' range, from where letters on them are white
_POINTS = 0.75 * 72  # of an inch of the picture, without what stands beside the matrix
_GAMMA = 0.5  # the square root: mistakes are rare, and a linear scale would leave them white


def confusion_picture(confusion: Any, classes: Sequence[str], *, title: str = "") -> bytes:
    """Return :func:`confusion_figure` as a PNG."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks is drawn as boxes
        confusion_figure(confusion, classes, title=title).savefig(buffer, format="png")
    return buffer.getvalue()


def confusion_figure(confusion: Any, classes: Sequence[str], *, title: str = "") -> Figure:
    """Draw a confusion matrix: a row per true class, a column per predicted one.

    A cell's colour is its share of its row, so that classes of any size compare; one hue from light to dark, which any
    colour vision and a grey printer tell apart. Where there is room, the counts stand in the cells.

    Args:
        confusion: whole numbers, (C, C), [true, predicted].
        classes: C names.
        title: the headline.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.6 + 0.42 * len(counts), 5.0, 14.0))
    figure = Figure(figsize=(side + 0.8, side), dpi=110, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(_GAMMA, 0, 1), interpolation="nearest")
    _name(axes, classes, side)
    if len(counts) <= _NUMBERED:
        _number(axes, counts, shares, room=_POINTS * side / len(counts))
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_label("share of the true class (square-root scale)", fontsize=9)
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "10 %", "25 %", "50 %", "100 %"], fontsize=8)
    if title:
        axes.set_title(_plain(title, 90), fontsize=10, color="#333333")
    return figure


def _name(axes: Axes, classes: Sequence[str], side: float) -> None:
    """Names along both axes, as many as there is room for."""
    every = 1 if len(classes) <= _NAMED else -(-len(classes) // _SPARSE)
    places = range(0, len(classes), every)
    names = [_plain(classes[place], _LONGEST) for place in places]
    size = float(np.clip(0.8 * _POINTS * side / max(len(classes) / every, 1), 4.5, 9.0))
    upright = max(map(len, names)) > 3 or len(names) > 30
    axes.set_xticks(places, names, fontsize=size, rotation=90 if upright else 0)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("predicted class", fontsize=10)
    axes.set_ylabel("true class", fontsize=10)
    axes.tick_params(length=2, width=0.5)


def _number(axes: Axes, counts: np.ndarray[Any, Any], shares: np.ndarray[Any, Any], room: float) -> None:
    """The count in every cell that has one, small enough for the longest."""
    longest = len(f"{counts.max():,}")
    size = float(np.clip(room / (0.75 * longest), 4.0, 10.0))  # a digit is about 0.6 times as wide as it is high
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] ** _GAMMA > _DARK else "#222222"
            axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=size, color=color)


def _plain(text: str, longest: int) -> str:
    """``text`` short enough, and without what matplotlib would read as a formula."""
    text = " ".join(text.split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
