"""d2l's ``Animator``: points go into lists at once, and into the picture at a limited rate.

In a notebook one output is updated in place; elsewhere the figure is an ordinary one of pyplot, for ``plt.show`` and
``savefig``. Whoever looks at it (draws it, or asks for ``fig`` or ``axes``) finds every point in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from wholebatch.compat.d2l.figures import FMTS, formats, make_room, notebook, plain, pyplot, set_axes, use_svg_display
from wholebatch.core.errors import InputError

_PAUSE = 0.5  # seconds between two drawings in a notebook
_SHARE = 10  # and so many times what the last one took
_ALL = 300  # up to so many points every one goes into its line at once


class Animator:
    """Lines that grow while something runs.

    The arguments are the book's. ``X`` and ``Y`` hold a list per series, None before the first point; ``fig`` is
    matplotlib's figure and ``axes`` a list of its axes, on the first of which the lines are.

    >>> animator = Animator(xlabel="epoch", legend=["train", "test"])
    >>> animator.add(1, (0.9, None))
    >>> animator.add(2, (0.7, 0.8))
    >>> animator.X, animator.Y
    ([[1, 2], [2]], [[0.9, 0.7], [0.8]])
    """

    def __init__(
        self,
        xlabel: Any = None,
        ylabel: Any = None,
        legend: Sequence[str] | None = None,
        xlim: Any = None,
        ylim: Any = None,
        xscale: str = "linear",
        yscale: str = "linear",
        fmts: Sequence[str] = FMTS,
        nrows: int = 1,
        ncols: int = 1,
        figsize: Sequence[float] = (3.5, 2.5),
    ) -> None:
        use_svg_display()
        self._fig, axes = pyplot().subplots(nrows, ncols, figsize=figsize, squeeze=False)
        self._number = self._fig.number
        self._axes = list(axes.flatten())
        self._legend = legend
        self._formats = formats(fmts)
        self._lines: list[Any] = []
        self._points = self._drawn = 0
        self._screen = _Screen(self)
        self.X: list[list[Any]] | None = None
        self.Y: list[list[Any]] | None = None
        self.fmts = fmts
        self._settings = (xlabel, ylabel, xlim, ylim, xscale, yscale)
        self.config_axes()
        make_room(self._axes[0])
        draw = self._fig.draw

        def draw_all(renderer: Any) -> None:
            self._fill()
            draw(renderer)

        self._fig.draw = draw_all

    def config_axes(self) -> None:
        """Give the first axes their labels, scales, limits and grid, and a legend to the lines there are."""
        set_axes(self._axes[0], *self._settings, self._legend if self._axes[0].lines else None)

    @property
    def fig(self) -> Any:
        """Matplotlib's figure, with every point in it."""
        self._fill()
        return self._fig

    @property
    def axes(self) -> list[Any]:
        """Its axes, row by row, with every point in the first one's lines."""
        self._fill()
        return self._axes

    def add(self, x: Any, y: Any) -> None:
        """Add one point to each series.

        Args:
            x: a number for all series, or one for each.
            y: a number, or one per series; None (in ``x`` or ``y``) adds nothing to that series. A tensor is kept as
                its number, so that no graph stays alive.

        Raises:
            InputError: ``x`` and ``y`` are of different lengths.
        """
        ys = _values(y)
        xs = _values(x) if isinstance(plain(x), Iterable) else [plain(x)] * len(ys)
        if len(xs) != len(ys):
            raise InputError(f"add() got {len(xs)} values of x and {len(ys)} of y; give one x for all, or one for each")
        if self.X is None or self.Y is None:
            self.X, self.Y = [], []
        while len(self.X) < len(ys):
            self.X.append([])
            self.Y.append([])
        for series, (a, b) in enumerate(zip(xs, ys, strict=True)):
            if a is not None and b is not None:
                self.X[series].append(a)
                self.Y[series].append(b)
                self._points += 1
        if self._points <= _ALL:
            self._fill()
        self._screen.changed()

    def _fill(self) -> None:
        """Give the lines all points there are."""
        if not self._points:  # or a derived class's own add draws them
            return
        first = self._axes[0]
        if any(line.axes is None for line in self._lines):  # somebody has cleared the axes
            self._lines, self._formats = [], formats(self.fmts)
            self.config_axes()
        if self._drawn == self._points and len(self._lines) == len(self.X or ()):
            return
        for series, (x, y) in enumerate(zip(self.X or (), self.Y or (), strict=True)):
            if series == len(self._lines):
                self._lines += first.plot([], [], next(self._formats))
                if self._legend:
                    named = self._lines[: len(self._legend)]
                    first.legend(named, self._legend[: len(named)])
            self._lines[series].set_data(x, y)
        self._drawn = self._points
        first.relim()
        first.autoscale_view()


def _values(given: Any) -> list[Any]:
    """One number per series."""
    given = plain(given)
    return [plain(one) for one in given] if isinstance(given, Iterable) else [given]


class _Screen:
    """The output of a notebook's cell in which an animator is seen; elsewhere it does nothing."""

    def __init__(self, animator: Animator) -> None:
        self._animator = animator
        self._shell = notebook()
        self._handle: Any = None  # of the present cell's output
        self._managed = False  # whether pyplot knew the figure when it was shown
        self._next = 0.0

    def changed(self) -> None:
        """Draw, unless it was done a moment ago."""
        begun = time.perf_counter()
        if self._shell is None or (self._handle is not None and begun < self._next):
            return
        try:
            self._show()
        except Exception:  # a picture that cannot be drawn, a front end gone away: training goes on
            self._shell = None
            return
        ended = time.perf_counter()
        self._next = ended + max(_PAUSE, _SHARE * (ended - begun))

    def _show(self) -> None:
        fig = self._animator.fig
        if self._handle is not None:
            self._handle.update(fig)
            return
        self._managed = pyplot().fignum_exists(self._animator._number)
        self._handle = import_module("IPython.display").display(fig, display_id=True)
        self._shell.events.register("post_execute", self._finish)

    def _finish(self) -> None:
        """At the cell's end draw the rest, unless matplotlib's inline backend has just shown and closed the figure."""
        handle, self._handle = self._handle, None
        self._shell.events.unregister("post_execute", self._finish)
        if self._managed and not pyplot().fignum_exists(self._animator._number):
            handle.update({"text/plain": ""}, raw=True)
        else:
            handle.update(self._animator.fig)
