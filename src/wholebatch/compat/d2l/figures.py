"""Plots and rows of images with pyplot, which is loaded when the first one is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence, Sized
from importlib import import_module
from itertools import count
from typing import Any

import numpy as np
from torch import Tensor

from wholebatch.core.errors import InputError

FMTS = ("-", "m--", "g-.", "r:")
_LEFT, _BELOW = 0.7, 0.5  # inches that tick labels and an axis label take
_STYLES = ("-", "--", "-.", ":")


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, with the backend Agg where the one that is asked for cannot be used here."""
    loaded = "matplotlib.pyplot" in sys.modules
    plt = import_module("matplotlib.pyplot")
    if not loaded:
        try:
            plt.switch_backend(import_module("matplotlib").get_backend())
        except ImportError:  # a backend for screens by MPLBACKEND, and no screen
            plt.switch_backend("agg")
    return plt


def notebook() -> Any:
    """Return IPython's shell where it belongs to a notebook, else None; IPython is never loaded for that."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def use_svg_display() -> None:
    """Show figures as SVG in a notebook; elsewhere nothing happens."""
    if notebook() is not None:
        import_module("matplotlib_inline.backend_inline").set_matplotlib_formats("svg")


def set_figsize(figsize: Sequence[float] = (3.5, 2.5)) -> None:
    """Set the size of figures to come, in inches."""
    use_svg_display()
    pyplot().rcParams["figure.figsize"] = figsize


def set_axes(
    axes: Any, xlabel: Any, ylabel: Any, xlim: Any, ylim: Any, xscale: str, yscale: str, legend: Sequence[str] | None
) -> None:
    """Set labels, scales, limits, legend and grid of matplotlib's axes; limits without room between them are left."""
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_xscale(xscale)
    axes.set_yscale(yscale)
    for limits, set_limits in ((xlim, axes.set_xlim), (ylim, axes.set_ylim)):
        if limits is not None and (np.ndim(limits) == 0 or limits[0] != limits[1]):  # [1, num_epochs] after one epoch
            set_limits(limits)
    if legend:
        axes.legend(legend)
    axes.grid(True)


def plot(
    X: Any,
    Y: Any = None,
    xlabel: Any = None,
    ylabel: Any = None,
    legend: Sequence[str] | None = None,
    xlim: Any = None,
    ylim: Any = None,
    xscale: str = "linear",
    yscale: str = "linear",
    fmts: Sequence[str] = FMTS,
    figsize: Sequence[float] = (3.5, 2.5),
    axes: Any = None,
) -> None:
    """Draw lines on ``axes``, or on pyplot's current ones, which are cleared first.

    Args:
        X: one series of x or several; with ``Y`` left out, the series themselves, drawn against 0, 1, 2, …
        Y: one series or several, of numbers, arrays or tensors (on any device, with a graph or without); a single X
            serves them all.
        xlabel, ylabel, legend, xlim, ylim, xscale, yscale: see :func:`set_axes`.
        fmts: matplotlib's formats, one per series; further series get formats of their own.
        figsize: inches, for figures to come.
        axes: where to draw.

    Raises:
        InputError: ``X`` and ``Y`` have different numbers of series.
    """
    set_figsize(figsize)
    axes = pyplot().gca() if axes is None else axes
    xs, ys = _series(X), None if Y is None else _series(Y)
    if ys is None:
        xs, ys = [None] * len(xs), xs
    if len(xs) == 1:
        xs = xs * len(ys)
    if len(xs) != len(ys):
        raise InputError(f"plot got {len(xs)} series of x and {len(ys)} of y; give one x for all, or one for each")
    axes.cla()
    for x, y, fmt in zip(xs, ys, formats(fmts), strict=False):
        axes.plot(y, fmt) if x is None or not len(x) else axes.plot(x, y, fmt)
    set_axes(axes, xlabel, ylabel, xlim, ylim, xscale, yscale, legend)
    make_room(axes)


def make_room(axes: Any) -> None:
    """Leave the labels of a figure's only axes room beside it: on the book's small figures they were cut off."""
    figure = axes.get_figure()
    if len(figure.axes) == 1 and figure.get_layout_engine() is None:
        width, height = figure.get_size_inches()
        now = figure.subplotpars
        figure.subplots_adjust(left=max(now.left, _LEFT / width), bottom=max(now.bottom, _BELOW / height))


def formats(fmts: Sequence[str]) -> Iterator[str]:
    """Yield ``fmts`` and then, for ever, pairs of a colour of matplotlib's cycle and a line style.

    >>> series = formats(["-", "m--"])
    >>> [next(series) for _ in range(4)]
    ['-', 'm--', 'C2:', 'C3-']
    """
    yield from fmts
    yield from (f"C{number % 10}{_STYLES[(number + 1) % 4]}" for number in count(len(fmts)))


def plain(value: Any) -> Any:
    """Return a number, or an array, without graph and device; None stays."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if _is_small(value) else value.numpy()
    scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if scalar else value


def _is_small(tensor: Tensor) -> bool:
    """Whether NumPy may not know the type: half the precision or less."""
    return tensor.is_floating_point() and tensor.element_size() < 4


def _series(given: Any) -> list[Any]:
    """One series or several as a list of series, each an array or a list of plain numbers."""
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 1:
        return [plain(given)]
    parts = [plain(part) for part in given]
    if not any(isinstance(part, Sized) for part in parts):
        return [parts]
    return [part if isinstance(part, np.ndarray) else [plain(one) for one in part] for part in parts]


def show_images(
    imgs: Any, num_rows: int, num_cols: int, titles: Sequence[str] | None = None, scale: float = 1.5
) -> Any:
    """Draw images in rows and return their axes, a flat array.

    Args:
        imgs: tensors or arrays (height, width) or (height, width, 3), or Pillow's images; cells without stay empty.
        num_rows: rows.
        num_cols: images in a row.
        titles: one per image.
        scale: the side of a cell in inches.
    """
    size = (num_cols * scale, num_rows * scale)
    _, axes = pyplot().subplots(num_rows, num_cols, figsize=size, squeeze=False)
    flat = axes.flatten()
    for place, (cell, image) in enumerate(zip(flat, imgs, strict=False)):
        cell.imshow(plain(image))
        cell.get_xaxis().set_visible(False)
        cell.get_yaxis().set_visible(False)
        if titles is not None and place < len(titles):
            cell.set_title(titles[place])
    return flat
