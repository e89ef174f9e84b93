"""A plot of what happens while it happens: in a notebook, on a terminal, as a picture on disk."""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import numpy as np

from wholebatch.core.errors import InputError, InputTypeError, nearest
from wholebatch.core.record import History, Observer, Progress, Record, RunShape
from wholebatch.display.chart import Chart, Line, Panel, check_limits, check_scale
from wholebatch.display.live import Live
from wholebatch.display.observed import Observed
from wholebatch.display.output import Output, plain
from wholebatch.display.progress import is_screen
from wholebatch.display.sinks import FileSink, NotebookSink, Sink, TerminalSink, fitted, notebook_shell
from wholebatch.display.text_chart import styled_rows

if TYPE_CHECKING:
    from rich.text import Text

    from wholebatch.display.runfolder import RunFolder

KINDS = ("png", "svg", "pdf")
_SHARE = 0.05  # of the time may go into drawing
_PICTURE = "live.png"  # in a run folder


@dataclass
class _Place:
    """Where a plot is drawn, when it may be again, and which state of the plot was."""

    sink: Sink
    next: float
    drawn: int = 0


class LivePlot(Observer):
    """Draws lines while their points come.

    In a notebook it is one output that changes in place. On a terminal it is a chart of braille characters, below
    the progress of :func:`wholebatch.train` where that is shown. With ``path``, and in a run folder, it is a picture
    that is written every few seconds and at the end. Elsewhere (a script, a pipe, CI) nothing is shown or written.

    Feed it by hand with :meth:`add`, from any thread, or give it to ``wb.train(observers=[...])``, whose records it
    draws then. Every point is kept (16 bytes each), while drawing takes at most a twentieth of the time, and as many
    points of a line as can be seen. Whatever goes wrong with drawing is said in one line, once, and stops nothing.

    It ends with its ``with`` block, with :meth:`close`, or when the interpreter exits.

    Args:
        xlabel: what x counts, with the unit.
        ylabel: what y is, with the unit.
        legend: the lines' names, in the order of the values given to :meth:`add`; without it they are numbered.
        title: the headline.
        path: a picture to write: .png, .svg or .pdf.
        every: seconds between two pictures on disk, at least.
        xscale, yscale: "linear" or "log".
        xlim, ylim: (low, high); None where the data say it.
        values: what is drawn of a run that is observed: a panel for each of these that its records have.
        show: False draws in no notebook and on no terminal.
        stream: the terminal; ``sys.stdout`` if None.
        clock: seconds, for tests.

    Raises:
        InputError: an ending, scale or limit that cannot be used.

    >>> with LivePlot("step", "loss", ["train", "test"]) as plot:
    ...     plot.add(1, 0.9, 1.1)
    ...     plot.add(2, train=0.7)
    >>> plot.points("train")
    ([1.0, 2.0], [0.9, 0.7])
    """

    def __init__(
        self,
        xlabel: str | None = None,
        ylabel: str | None = None,
        legend: Sequence[str] | str | None = None,
        *,
        title: str = "",
        path: str | os.PathLike[str] | None = None,
        every: float = 5.0,
        xscale: str = "linear",
        yscale: str = "linear",
        xlim: Sequence[float | None] | None = None,
        ylim: Sequence[float | None] | None = None,
        values: Sequence[str] = ("loss", "accuracy"),
        show: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._xlabel, self._ylabel, self._title = xlabel, ylabel, title
        self._names = [legend] if isinstance(legend, str) else None if legend is None else [str(one) for one in legend]
        self._only = "line 1" if self._names is None else self._names[0] if len(self._names) == 1 else None
        self._path, self._every = None if path is None else picture_path(path), every
        self._xscale, self._yscale = check_scale("xscale", xscale), check_scale("yscale", yscale)
        self._xlim, self._ylim = check_limits("xlim", xlim), check_limits("ylim", ylim)
        self._show, self._stream, self._clock = show, stream, clock
        self._observed = Observed([values] if isinstance(values, str) else values)
        self._series: dict[str, tuple[array[float], array[float]]] = {}
        for name in self._names or ():
            self._series[name] = (array("d"), array("d"))
        self._data, self._drawing = threading.Lock(), threading.Lock()
        self._places: list[_Place] | None = None  # None: not looked for yet
        self._folder: RunFolder | None = None
        self._progress: tuple[Progress, int] | None = None  # of the epoch that runs, and the thread that trains
        self._next = -math.inf
        self._version = 0  # counts changes
        self._closed = self._inside = False
        self._said: set[str] = set()

    # feeding ------------------------------------------------------------------------------------

    def add(self, x: Any, *values: Any, **named: Any) -> None:
        """Add a point at ``x`` to each line.

        ``values`` are numbers (or tensors of one), or one list or mapping of them; ``named`` go to the lines of their
        names. None leaves a line out; NaN and infinity make a gap in it. A tensor is read at once, which waits for its
        device. A new name makes a new line; without ``legend`` so does a further value.

        Raises:
            InputError: another number of values than names in ``legend``.
            InputTypeError: something is no number.
        """
        at = _number(x, "x")
        if self._only is not None and len(values) == 1 and type(values[0]) is float and not named:
            pairs = [(self._only, values[0])]  # the short way, for loops that do little else
        else:
            pairs = self._named(values, named)
        with self._data:
            for name, y in pairs:
                kept = self._series.get(name)
                if kept is None:
                    kept = self._series[name] = (array("d"), array("d"))
                kept[0].append(at)
                kept[1].append(y)
            self._version += 1
        if self._clock() >= self._next:
            self._draw_due()

    def _named(self, values: Sequence[Any], named: Mapping[str, Any]) -> list[tuple[str, float]]:
        """All values with the names of their lines."""
        if len(values) == 1 and isinstance(values[0], Mapping):
            named, values = {**{str(name): value for name, value in values[0].items()}, **named}, ()
        more = [(name, _number(value, name)) for name, value in named.items() if value is not None]
        return self._numbered(values) + more

    def _numbered(self, values: Sequence[Any]) -> list[tuple[str, float]]:
        """The values given in order, by the names of their lines."""
        if len(values) == 1 and not isinstance(values[0], (int, float)):
            values = _as_list(values[0])
        if self._names is not None and values and len(values) != len(self._names):
            raise InputError(
                f"add got {len(values)} values for the {len(self._names)} lines of the legend {self._names}; "
                "give one for each, None where there is none, or name them: add(x, name=value)"
            )
        names = self._names or [f"line {place}" for place in range(1, len(values) + 1)]
        return [(name, _number(value, name)) for name, value in zip(names, values, strict=False) if value is not None]

    def points(self, name: str) -> tuple[list[float], list[float]]:
        """Return all x and all y of a line that was fed by hand.

        Raises:
            InputError: there is no such line.
        """
        if name not in self._series:
            raise InputError(f"there is no line {name!r}{nearest(name, self._series)}; there are {[*self._series]}")
        with self._data:
            x, y = self._series[name]
            return x.tolist(), y.tolist()

    # observing a run ----------------------------------------------------------------------------

    def start(self, run: RunShape) -> None:
        """A run begins: what an earlier one left is dropped, what this one did before it was stopped is drawn."""
        if self._closed:
            self._places, self._closed, self._next = None, False, -math.inf
        with self._data:
            self._observed.start(run)
            self._version += 1
        self._progress = None
        self._draw_due()

    def step(self, progress: Progress) -> None:
        """Draw, where a drawing is due; the running values are read from the device only then."""
        self._progress = progress, threading.get_ident()
        self._version += 1
        if self._clock() >= self._next:
            self._draw_due()

    def record(self, record: Record) -> None:
        """Draw the record's values, where a drawing is due."""
        with self._data:
            self._observed.add(record)
            self._version += 1
        if record.get("kind") == "epoch":
            self._progress = None
        if self._clock() >= self._next:
            self._draw_due()

    def end(self, history: History, error: BaseException | None) -> None:
        """Draw once more."""
        self._progress = None
        self.close()

    def join(self, display: Observer, folder: RunFolder | None) -> None:
        """Be drawn below a live ``display``, and write pictures through ``folder``, before a run begins.

        The folder takes no writing of a run that another one overtook.
        """
        self._folder, self._inside = folder, isinstance(display, Live) and self._show
        if isinstance(display, Live) and self._show:
            display.below = self.rows

    def rows(self, columns: int, lines: int, output: Output) -> list[Text]:
        """The chart for a terminal; empty where it cannot be drawn, which is said."""
        try:
            return styled_rows(fitted(self.chart(), columns + 1, lines, output))
        except Exception as error:  # a chart is only looked at: it must not stop the run
            self._tell("terminal", error)
            return []

    # ending -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Draw once more, and no more after that; what is added later is kept. May be called again."""
        atexit.unregister(self.close)
        if self._closed:
            return
        self.flush()
        with self._drawing:
            self._closed, self._next = True, math.inf
            for place in self._places or ():
                self._safely(place.sink.name, place.sink.close)

    def flush(self) -> None:
        """Draw now, where something changed since the last drawing."""
        if self._closed:
            return
        with self._drawing:
            self._open()
            for place in self._places or ():
                if place.drawn != self._version:
                    self._draw(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # drawing ------------------------------------------------------------------------------------

    def chart(self) -> Chart:
        """What is known, as a chart."""
        progress, trainer = self._progress or (None, 0)
        running = progress if trainer == threading.get_ident() else None  # a device is read by the thread that trains
        with self._data:
            panels = self._observed.panels(running)
            lines = [Line(name, np.array(x), np.array(y)) for name, (x, y) in self._series.items()]
        xlabel = self._xlabel or (self._observed.xlabel if panels else "")
        if self._names is None and [line.label for line in lines] == ["line 1"]:
            lines = [Line("", lines[0].x, lines[0].y)]
        if lines or not panels:
            panels.insert(0, Panel(self._ylabel or "", lines))
        scale: dict[str, Any] = {"yscale": self._yscale, "ylim": self._ylim}
        if self._yscale != "linear" or self._ylim is not None:
            panels[0] = Panel(panels[0].ylabel, panels[0].lines, **scale)
        return Chart(
            panels,
            xlabel,
            self._title or self._observed.title,
            self._xscale,
            self._xlim,
            whole_x=xlabel in ("epoch", "step"),
        )

    def _open(self) -> None:
        """Find out where to draw, at the first drawing."""
        if self._places is not None:
            return
        self._places = []
        sinks: list[Sink] = []
        stream = sys.stdout if self._stream is None else self._stream
        shell = notebook_shell()
        if self._show and self._stream is None and shell is not None:
            self._safely("notebook", lambda: sinks.append(NotebookSink(shell, _weak_flush(self))))
        elif self._show and not self._inside and is_screen(stream):
            sinks.append(TerminalSink(Output(stream), color=not os.environ.get("NO_COLOR")))
        path, write = self._path, None
        if path is None and isinstance(self._observed.run_dir, Path):  # at a URL there are the run's own curves
            path, folder = self._observed.run_dir / _PICTURE, self._folder
            write = None if folder is None else folder.write
        if path is not None:
            sinks.append(FileSink(path, self._every, write))
        now = self._clock()
        self._places = [_Place(sink, -math.inf if sink.eager else now + sink.interval) for sink in sinks]
        if sinks and shell is None:
            atexit.register(self.close)

    def _draw_due(self) -> None:
        """Draw wherever enough time has passed; nothing where another thread draws now."""
        if self._closed or not self._drawing.acquire(blocking=False):
            return
        try:
            self._open()
            now = self._clock()
            for place in self._places or ():
                if now >= place.next:
                    self._draw(place)
            self._next = min([place.next for place in self._places or ()], default=math.inf)
        finally:
            self._drawing.release()

    def _draw(self, place: _Place) -> None:
        began, version = self._clock(), self._version
        if self._safely(place.sink.name, lambda: place.sink.draw(self.chart())):
            place.drawn = version
        now = self._clock()
        place.next = now + max(place.sink.interval, (now - began) / _SHARE)

    def _safely(self, topic: str, call: Callable[[], object]) -> bool:
        """Call it; where that fails say so once and return False."""
        try:
            call()
        except Exception as error:  # a plot is only looked at: it must not stop the run
            self._tell(topic, error)
            return False
        return True

    def _tell(self, topic: str, error: Exception) -> None:
        if topic not in self._said:
            self._said.add(topic)
            where = f"the picture {self._path or _PICTURE}" if topic == "file" else f"the live plot ({topic})"
            reason = f"{type(error).__name__}: {error}"
            Output(sys.stderr).line(plain(f"{where} cannot be drawn, everything else goes on: {reason}"))


def picture_path(path: str | os.PathLike[str]) -> Path:
    """Return a path whose ending says a kind of picture.

    Raises:
        InputError: it does not.
    """
    place = Path(path).expanduser()
    ending = place.suffix[1:].lower()
    if ending not in KINDS:
        raise InputError(f"{str(path)!r}: a picture ends in .png, .svg or .pdf{nearest(ending, KINDS)}")
    return place


def _weak_flush(plot: LivePlot) -> Callable[[], None]:
    """What a notebook calls after every cell; it does not keep a plot alive that nobody else has."""
    kept = weakref.ref(plot)

    def flush() -> None:
        alive = kept()
        if alive is not None:
            alive.flush()

    return flush


def _number(value: Any, name: str) -> float:
    if isinstance(value, float):
        return value
    try:
        if not isinstance(value, str):
            return float(value.detach() if hasattr(value, "detach") else value)
        raise TypeError
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # RuntimeError: a tensor of several values
        raise InputTypeError(f"{name} needs a number, got {type(value).__name__} {plain(str(value))[:60]!r}") from error


def _as_list(value: Any) -> list[Any]:
    """The values of a list, array or tensor; a single one as a list of one."""
    tolist = getattr(value, "tolist", None)
    plain_value = tolist() if tolist is not None else value
    if isinstance(plain_value, Iterable) and not isinstance(plain_value, (str, bytes)):
        return list(plain_value)
    return [plain_value]
