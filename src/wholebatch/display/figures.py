"""The picture of a run: loss and accuracy by epoch, the learning rate as a strip below.

Drawn through matplotlib's objects, without pyplot and without lasting changes of its settings. The
same history gives the same bytes, whatever the reader's matplotlibrc says (with the same version
of matplotlib). Colours are Okabe and Ito's, which people with any colour vision can tell
apart (https://jfly.uni-koeln.de/color/); line styles and markers differ as well.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wholebatch.core.record import History
from wholebatch.display.series import Places, Series, series
from wholebatch.display.writing import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VERMILION, _BLUE, _SKY, _GREEN = "#D55E00", "#0072B2", "#56B4E9", "#009E73"
_INK, _GRID = "#333333", "#E6E6E6"
_LOSS: dict[str, Any] = {"color": _VERMILION, "linestyle": "-", "marker": "o", "label": "train loss"}
_TEST_LOSS: dict[str, Any] = {"color": _BLUE, "linestyle": "-", "marker": "s", "label": "test loss"}
_TRAIN = {"color": _SKY, "linestyle": "--", "marker": "^", "markersize": 6, "label": "train accuracy"}
_TEST = {"color": _BLUE, "linestyle": "-", "marker": "s", "label": "test accuracy"}
_SPLITS = (("train", _TRAIN), ("test", _TEST))
_TITLE = 50  # characters that stand beside the result
_LOG_FROM = 100.0  # largest loss over smallest: from here on a linear axis shows only the beginning
_RC = {
    "figure.figsize": (8.0, 5.0),
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": _INK,
    "axes.titlepad": 28,
    "axes.titlelocation": "left",
    "axes.grid.axis": "both",
    "text.color": _INK,
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
    "lines.markersize": 4.5,
    "svg.hashsalt": "wholebatch",
    "svg.fonttype": "path",
}


def curves(history: History, target: Figure | str | os.PathLike[str] | None = None, *, title: str = "") -> Figure:
    """Draw a history; return the figure.

    Above: train loss by epoch (left axis), between epochs from step records where there are any,
    and train and test accuracy in per cent (right axis); without any accuracy the test loss beside
    the train loss. Below: the learning rate, and the gradient noise scale with its interval, where they are known.
    Values that are not finite leave a gap.

    Args:
        history: records; see ``core/record.py``.
        target: a figure to draw on, which is cleared, or a file to write (``.png``, ``.svg``, ``.pdf``).
        title: the headline; "Training" where it is empty.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib does not know the file's ending.
    """
    from matplotlib.figure import Figure

    with _settings():
        figure = target if isinstance(target, Figure) else Figure(figsize=(8.0, 5.0))
        _draw(figure, history, title)
    if target is not None and not isinstance(target, Figure):
        path = Path(target)
        write_bytes(path, picture(figure, path.suffix.lstrip(".") or "png"))
    return figure


def picture(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure as a file of ``kind``: "png", "svg" or "pdf"; no date and no random name in them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with _settings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box in a title harms nobody
        if type(figure.canvas).__name__ == "FigureCanvasBase":
            FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, facecolor="white", metadata=undated.get(kind))
    return buffer.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    """Our settings over matplotlib's own defaults, for a while: what the user set is neither used nor changed."""
    import matplotlib
    from matplotlib import style

    with matplotlib.rc_context():
        style.use(["default", _RC])
        yield


def _draw(figure: Figure, history: History, title: str) -> None:
    places = Places(history)
    rates = _of_steps_or_epochs(history, places, "lr")
    figure.clear()
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.08)
    noise = _of_steps_or_epochs(history, places, "noise_scale")
    strips = [draw for there, draw in ((rates, _draw_rates), (noise, _draw_noise)) if there]
    upper, *lower = figure.subplots(
        1 + len(strips), 1, sharex=True, squeeze=False, height_ratios=[5, *[1] * len(strips)]
    )[:, 0]
    strip = lower[-1] if lower else upper
    for axes in [upper, *lower][:-1]:
        axes.tick_params(axis="x", length=0)
    for axes, draw in zip(lower, strips, strict=True):
        draw(axes, history, places)
    right = _draw_accuracies(upper, history, places)
    _draw_losses(upper, history, places, test=right is None)
    _finish(upper, right, strip, places)
    _head(upper, right, title or "Training", "" if history.records else "no records yet")


def _of_steps_or_epochs(history: History, places: Places, key: str) -> Series:
    """A value of steps where they say it, else of epochs."""
    fine = series(history, places, "train", "step", key)
    return fine if fine else series(history, places, "train", "epoch", key)


def _marks(points: Series) -> dict[str, Any]:
    """At most about twenty markers a line, white-edged, so that many epochs do not become a band."""
    return {"markevery": max(1, len(points.x) // 20), "markeredgecolor": "white", "markeredgewidth": 0.7}


def _draw_losses(axes: Axes, history: History, places: Places, *, test: bool) -> None:
    """Train loss by epoch over a thin line by step; with ``test`` the test loss as well."""
    fine = series(history, places, "train", "step", "loss")
    coarse = series(history, places, "train", "epoch", "loss")
    tested = series(history, places, "test", "epoch", "loss") if test else Series([], [])
    if fine:
        look: dict[str, Any] = {"alpha": 0.45, "label": "_steps"} if coarse else {"label": "train loss"}
        axes.plot(fine.x, fine.y, color=_VERMILION, linewidth=1.0, **look)
    for points, style in ((coarse, _LOSS), (tested, _TEST_LOSS)):
        if points:
            axes.plot(points.x, points.y, zorder=3, **style, **_marks(points))
    values = [y for y in (*fine.y, *coarse.y, *tested.y) if y == y]
    if values and min(values) > 0 and max(values) >= _LOG_FROM * min(values):
        axes.set_yscale("log")
    elif values and min(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_ylabel("loss (log scale)" if axes.get_yscale() == "log" else "loss", color=_INK if tested else _VERMILION)


def _draw_accuracies(axes: Axes, history: History, places: Places) -> Axes | None:
    """Train and test accuracy in per cent on an axis of their own at the right; None where there are none."""
    found = [(series(history, places, split, "epoch", "accuracy"), look) for split, look in _SPLITS]
    found = [(points, look) for points, look in found if points]
    if not found:
        return None
    right: Axes = axes.twinx()
    for points, look in found:
        right.plot(points.x, [100 * y for y in points.y], **look, **_marks(points))
    lowest = min(100 * y for points, _ in found for y in points.y if y == y)
    unit = 10 if lowest < 90 else 5
    right.set_ylim(max(0, unit * ((lowest - 1) // unit)), 100.5)
    right.set_ylabel("accuracy (%)", color=_BLUE)
    right.spines["left"].set_visible(False)
    right.grid(False)
    return right


def _draw_noise(axes: Axes, history: History, places: Places) -> None:
    """The gradient noise scale over its interval, in samples, on a log axis."""
    from matplotlib.ticker import LogLocator, NullLocator

    scale, low, high = (_of_steps_or_epochs(history, places, key) for key in ("noise_scale", "noise_low", "noise_high"))
    marker = "o" if len(scale.x) == 1 else ""
    axes.plot(scale.x, scale.y, color=_INK, linewidth=1.6, marker=marker, clip_on=False)
    axes.fill_between(low.x, low.y, high.y, color=_INK, alpha=0.15, linewidth=0)
    if min(low.y) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=4))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, place: f"{value:,g}")
    axes.set_ylabel("noise\nscale")
    axes.spines["right"].set_visible(False)
    axes.grid(True)
    axes.set_axisbelow(True)


def _draw_rates(axes: Axes, history: History, places: Places) -> None:
    rates = _of_steps_or_epochs(history, places, "lr")
    axes.plot(rates.x, rates.y, color=_GREEN, linewidth=1.6, marker="o" if len(rates.x) == 1 else "", clip_on=False)
    axes.fill_between(rates.x, rates.y, color=_GREEN, alpha=0.15, linewidth=0)
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(bottom=0)
    axes.spines["right"].set_visible(False)
    axes.grid(True)
    axes.set_axisbelow(True)


def _finish(upper: Axes, right: Axes | None, strip: Axes, places: Places) -> None:
    """Grid, spines and the axis of epochs."""
    from matplotlib.ticker import MaxNLocator

    if right is None:
        upper.spines["right"].set_visible(False)
    upper.grid(True)
    upper.set_axisbelow(True)
    strip.set_xlabel(places.unit)
    strip.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    strip.margins(x=0.02)


def _head(upper: Axes, right: Axes | None, title: str, note: str) -> None:
    """The title, the result at its right, and the legend between them and the curves."""
    title = title if len(title) <= _TITLE else title[: _TITLE - 1] + "…"
    upper.set_title(title, loc="left", fontweight="bold", fontsize=13, parse_math=False)
    lines = [*upper.get_lines(), *(right.get_lines() if right is not None else [])]
    lines = [line for line in lines if not str(line.get_label()).startswith("_")]
    if lines:
        where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3, "borderpad": 0}
        labels = [str(line.get_label()) for line in lines]
        upper.legend(lines, labels, ncols=len(lines), handlelength=2.8, columnspacing=1.6, **where)
    last = next((line for line in lines if line.get_label() == _TEST["label"]), None)
    if last is not None:
        value = [y for y in cast("list[float]", last.get_ydata()) if y == y][-1]
        upper.set_title(f"test accuracy {value:.2f} %", loc="right", color=_BLUE, fontsize=11.5)
    if note:
        upper.text(0.5, 0.5, note, transform=upper.transAxes, ha="center", va="center", fontsize=12)
