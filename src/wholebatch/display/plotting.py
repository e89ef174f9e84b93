"""``plot``: lines from numbers or from functions such as schedules."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wholebatch.core.errors import InputError, InputTypeError
from wholebatch.display.chart import Chart, Floats, Line, Panel, check_limits, check_scale
from wholebatch.display.liveplot import picture_path
from wholebatch.display.output import plain
from wholebatch.display.sinks import notebook_shell, show_figure
from wholebatch.display.writing import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDLESS = 100.0  # how far a function is drawn that says no end
_BEYOND = 1.05  # of its end: it shows that nothing more happens
_FINE = 600  # points of a function, more than can be told apart


def plot(
    X: Any,
    Y: Any = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    legend: Sequence[str] | str | None = None,
    xlim: Sequence[float | None] | None = None,
    ylim: Sequence[float | None] | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    fmts: Sequence[str] | None = None,
    figsize: tuple[float, float] = (7.0, 4.2),
    axes: Axes | None = None,
    *,
    title: str = "",
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draw lines and return the matplotlib figure; in a notebook it is shown. No display is needed.

    ``plot(y)`` draws over 0, 1, 2, …; ``plot(x, y)`` over x; ``plot(x, [y1, y2])`` several lines over one x,
    ``plot([x1, x2], [y1, y2])`` each over its own. A line is a sequence of numbers, an array or a tensor (of two
    dimensions: a line per row), or a function of one number, such as a schedule: it is drawn over x, or over one
    number x from 0 to it, or without X (``plot(schedule)``) from 0 to its end. A dict gives the names with the lines.

    Lines differ in colour, for any colour vision, and in style; the order of arguments is that of ``d2l.plot``.

    Args:
        X: the places, or the lines where there is no Y.
        Y: the lines.
        xlabel, ylabel: what is counted, with the unit.
        legend: the lines' names, at most as many as there are lines.
        xlim, ylim: (low, high); None where the data say it.
        xscale, yscale: "linear" or "log".
        fmts: matplotlib's format strings, taken in turn; None uses colours and styles of our own.
        figsize: inches.
        axes: draw here; the figure is then that of the axes, and is not shown.
        title: the headline.
        path: a file to write as well: .png, .svg or .pdf.

    Raises:
        InputError: lengths or numbers of lines do not fit, or a scale, limit or ending cannot be used.
        InputTypeError: something is neither numbers nor a function.
        OSError: ``path`` cannot be written.

    >>> figure = plot([1, 2, 3], {"train": [3, 2, 1], "test": [4, 3, 3]}, "epoch", "loss")
    >>> [line.get_label() for line in figure.axes[0].get_lines()]
    ['train', 'test']
    """
    scales = {"xscale": check_scale("xscale", xscale), "yscale": check_scale("yscale", yscale)}
    limits = {"xlim": check_limits("xlim", xlim), "ylim": check_limits("ylim", ylim)}
    place = None if path is None else picture_path(path)
    lines, rates = _lines(X, Y, legend)
    panel = Panel(ylabel or ("learning rate" if rates else ""), lines, scales["yscale"], limits["ylim"])
    xlabel = xlabel or ("progress" if rates else "")
    chart = Chart([panel], xlabel, title, scales["xscale"], limits["xlim"], whole_x=xlabel in ("epoch", "step"))
    figure = _drawn(chart, fmts, figsize, axes)
    if place is not None:
        from wholebatch.display.chart_figure import figure_bytes

        write_bytes(place, figure_bytes(figure, place.suffix[1:].lower()))
    if axes is None and notebook_shell() is not None:
        show_figure(figure, title or ", ".join(line.label for line in lines))
    return figure


def schedule_line(schedule: Callable[[Any], Any], label: str = "", until: float | None = None) -> Line:
    """A schedule, or any function of one number, as a line from 0 to ``until``: 5 % beyond its end, or 100."""
    if until is None:
        end = getattr(schedule, "end", getattr(schedule, "max_update", math.inf))
        until = _BEYOND * end if isinstance(end, (int, float)) and 0 < end < math.inf else _ENDLESS
    x = np.linspace(0.0, until, _FINE + 1)
    if until <= _FINE:  # a step in the middle of two points would look like a slope
        x = np.union1d(x, np.arange(0, int(until) + 1, dtype=float))
    return Line(label, x, _called(schedule, x))


def _drawn(chart: Chart, fmts: Sequence[str] | None, figsize: tuple[float, float], axes: Axes | None) -> Figure:
    from matplotlib.figure import Figure

    from wholebatch.display.chart_figure import draw_line, dress, dress_x, legend

    (panel,) = chart.panels
    if axes is None:
        figure = Figure(figsize=figsize, dpi=100, facecolor="white")
        figure.set_layout_engine("constrained", h_pad=0.07, w_pad=0.08)
        axes = figure.subplots()
        hide_second_showing(figure)
    else:
        axes.cla()
    for index, line in enumerate(panel.lines):
        draw_line(axes, line, index, fmts[index % len(fmts)] if fmts else None, marked=len(line.x) <= 12)
    dress(axes, panel)
    dress_x(axes, chart)
    legend(axes, [line.label for line in panel.lines])
    if chart.title:
        axes.set_title(chart.title, loc="left", fontweight="bold", fontsize=13, pad=26, parse_math=False)
    found = axes.get_figure()
    assert found is not None
    return found  # type: ignore[return-value]


def hide_second_showing(figure: Figure) -> None:
    """A figure that a cell has shown is not shown again as the value of that cell."""
    shell = notebook_shell()
    if shell is None:
        return
    made = shell.execution_count

    def display() -> None:
        if shell.execution_count != made:
            show_figure(figure)

    figure._ipython_display_ = display  # type: ignore[attr-defined]


def _lines(X: Any, Y: Any, legend: Sequence[str] | str | None) -> tuple[list[Line], bool]:
    """The lines, and whether all of them are schedules, which have an end."""
    given, xs = (X, None) if Y is None else (Y, X)
    if isinstance(given, Mapping):
        legend = list(given) if legend is None else legend
        given = list(given.values())
    ys = _series(given)
    names = [legend] if isinstance(legend, str) else [str(name) for name in legend or ()]
    if len(names) > len(ys):
        raise InputError(f"legend has {len(names)} names for {len(ys)} lines: {names}")
    names += [""] * (len(ys) - len(names))
    places: list[Any] = [None] if xs is None else _series(xs)
    if len(places) not in (1, len(ys)):
        if len(ys) != 1:
            raise InputError(f"X has {len(places)} lines and Y has {len(ys)}; give one X, or one for each Y")
        ys, names = ys * len(places), names * len(places)
    places = places * len(ys) if len(places) == 1 else places
    made = [_line(x, y, name, number) for number, (x, y, name) in enumerate(zip(places, ys, names, strict=True), 1)]
    return made, all(callable(y) and hasattr(y, "end") for y in ys)


def _series(given: Any) -> list[Any]:
    """The single lines of what stands for one or several: arrays of one dimension, functions, or a number."""
    if callable(given):
        return [given]
    if isinstance(given, (list, tuple)) and any(callable(one) or _dimensions(one) for one in given):
        return [one if callable(one) else _array(one) for one in given]
    array = _array(given)
    return list(array) if array.ndim == 2 else [array]


def _dimensions(one: Any) -> int:
    if isinstance(one, (str, bytes)):
        return 0
    return int(getattr(one, "ndim", 1 if hasattr(one, "__len__") or hasattr(one, "__iter__") else 0))


def _array(given: Any) -> Floats:
    detach = getattr(given, "detach", None)
    if detach is not None:
        given = detach().cpu().double().numpy()
    elif not hasattr(given, "__array__") and hasattr(given, "__iter__") and not isinstance(given, (str, bytes)):
        given = [math.nan if one is None else one for one in given]
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        shown = plain(repr(given))[:60]
        raise InputTypeError(f"plot needs numbers, arrays or functions; got {type(given).__name__} {shown}") from error
    if array.ndim > 2:
        raise InputError(f"plot got an array of shape {array.shape}; a line has one dimension, several lines two")
    return array


def _line(x: Any, y: Any, name: str, number: int) -> Line:
    if callable(x):
        raise InputTypeError("X is a function, which has no places; give it as Y, or alone")
    if callable(y):
        if x is None or x.ndim == 0:
            return schedule_line(y, name, None if x is None else float(x))
        return Line(name, x, _called(y, x))
    if y.ndim == 0:
        raise InputTypeError(f"plot needs a sequence of numbers for a line; got the single number {float(y)!r}")
    if x is None or not x.size:
        return Line(name, np.arange(len(y), dtype=np.float64), y)
    if x.shape != y.shape:
        raise InputError(f"line {number} has {x.size} places in X and {y.size} values in Y; give as many of both")
    return Line(name, x, y)


def _called(function: Callable[[Any], Any], x: Floats) -> Floats:
    """The function's values, asked for one by one: it need not take arrays."""
    try:
        return np.array([float(function(place)) for place in x.tolist()], dtype=np.float64)
    except (TypeError, RuntimeError) as error:
        raise InputTypeError(
            f"{type(function).__name__} cannot be drawn: it must take a number and return one ({plain(str(error))})"
        ) from error
