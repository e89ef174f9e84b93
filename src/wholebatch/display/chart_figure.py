"""A chart as a matplotlib figure.

Drawn through matplotlib's objects, without pyplot, so that no figure is kept alive and no display is needed; every
colour and size is set on the objects themselves, so that a thread may draw while others use matplotlib's settings.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wholebatch.display.chart import Chart, Line, Panel, thin
from wholebatch.display.look import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _EDGE, _GRID = "#333333", "#999999", "#E6E6E6"
_COLUMNS = 1280  # pixels: 8 inches at 160 dpi
_DPI = 160
_IN_A_ROW = 72  # characters of labels that stand above a panel; more go beside it
_ROWS = 22  # labels in one column beside a panel


def figure_of(chart: Chart, figsize: tuple[float, float] | None = None) -> Figure:
    """Return a figure of ``chart``, a panel below the other.

    Args:
        chart: what to draw; at most some thousand points of each line are.
        figsize: inches.
    """
    from matplotlib.figure import Figure

    count = max(1, len(chart.panels))
    figure = Figure(figsize=figsize or (8.0, 1.6 + 2.6 * count), dpi=100, facecolor="white")
    figure.set_layout_engine("constrained", h_pad=0.07, w_pad=0.08)
    rows = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    low, high = chart.bounds()
    for axes, panel in zip(rows, chart.panels, strict=False):
        for index, line in enumerate(panel.lines):
            x, y = thin(line.x, line.y, _COLUMNS, low, high, chart.xscale)
            draw_line(axes, Line(line.label, x, y), index, marked=len(line.x) <= 20)
        dress(axes, panel)
        labels = [line.label for line in panel.lines]
        if panel is chart.panels[0] or labels != [line.label for line in chart.panels[0].lines]:
            legend(axes, labels)
        axes.label_outer()
    dress_x(rows[-1], chart)
    figure.align_ylabels()
    if chart.title:
        figure.suptitle(chart.title, x=0.01, ha="left", color=_INK, fontsize=13, fontweight="bold", parse_math=False)
    if not any(line.y.size for panel in chart.panels for line in panel.lines):
        rows[0].text(0.5, 0.5, "no points yet", transform=rows[0].transAxes, ha="center", va="center", color=_INK)
    return figure


def draw_line(axes: Axes, line: Line, index: int, fmt: str | None = None, marked: bool = False) -> None:
    """Draw a line in the look of its number, or in that of a matplotlib format string.

    Points without a finite neighbour, which no line shows, get a marker; with ``marked`` all do.
    """
    look: dict[str, Any] = {"linewidth": 1.8}
    if not fmt:
        look |= style(index)
        lone = _lone(line.y)
        if marked:
            look |= {"marker": look["marker"] or "o", "markevery": None}
        elif look["marker"]:
            look["markevery"] = max(1, len(line.x) // 20)
        elif lone.any():
            look |= {"marker": "o", "markevery": np.flatnonzero(lone).tolist()}
        look |= {"markersize": 4.0, "markeredgecolor": "white", "markeredgewidth": 0.6}
    finite = np.where(np.isfinite(line.y), line.y, np.nan)
    axes.plot(line.x, finite, *([fmt] if fmt else []), label=line.label or "_", **look)


def _lone(y: Any) -> Any:
    """Which finite points stand between gaps."""
    there = np.isfinite(y)
    before, after = np.append(False, there[:-1]), np.append(there[1:], False)
    return there & ~before & ~after


def dress(axes: Axes, panel: Panel) -> None:
    """The y axis, the grid and the edges."""
    axes.set_facecolor("white")
    _leave_out_what_has_no_logarithm(axes, panel.yscale, "y")
    axes.set_yscale(panel.yscale)
    label = f"{panel.ylabel} (log scale)" if panel.yscale == "log" and panel.ylabel else panel.ylabel
    axes.set_ylabel(label, color=_INK, fontsize=10.5, parse_math=False)
    if panel.ylim is not None:
        axes.set_ylim(*panel.ylim)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_EDGE)
    axes.tick_params(color=_EDGE, labelcolor=_INK, labelsize=9.5)
    axes.grid(True, color=_GRID, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)


def _leave_out_what_has_no_logarithm(axes: Axes, scale: str, axis: str) -> None:
    """Lines without any positive number are empty on a logarithmic axis; matplotlib warns of them otherwise."""
    if scale != "log":
        return
    for line in axes.get_lines():
        x, y = (np.asarray(values, dtype=np.float64) for values in line.get_data(orig=True))
        shown = y if axis == "y" else x
        if shown.size and not (shown > 0).any():
            line.set_data(x[:0], y[:0])
    axes.relim()


def dress_x(axes: Axes, chart: Chart) -> None:
    """The x axis."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    _leave_out_what_has_no_logarithm(axes, chart.xscale, "x")
    axes.set_xscale(chart.xscale)
    axes.set_xlabel(chart.xlabel, color=_INK, fontsize=10.5, parse_math=False)
    if chart.xlim is not None:
        axes.set_xlim(*chart.xlim)
    if chart.whole_x and chart.xscale == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def legend(axes: Axes, labels: Sequence[str]) -> None:
    """The labels above the panel, or beside it where there are many: never over a line."""
    shown = [label for label in labels if label and not label.startswith("_")]
    if not shown:
        return
    words: dict[str, Any] = {"frameon": False, "labelcolor": _INK, "fontsize": 9.5, "handlelength": 3.6}
    if len(shown) <= 5 and sum(len(label) + 6 for label in shown) <= _IN_A_ROW:
        words |= {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(shown), "borderaxespad": 0.2}
    else:
        words |= {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "ncols": -(-len(shown) // _ROWS)}
    made = axes.legend(**words)
    for text in made.get_texts():
        text.set_parse_math(False)


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure as a file of ``kind``: "png", "svg" or "pdf"."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if type(figure.canvas).__name__ == "FigureCanvasBase":
        FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box in a label harms nobody
        figure.savefig(buffer, format=kind, facecolor="white", dpi=_DPI)
    return buffer.getvalue()
