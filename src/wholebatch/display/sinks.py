"""Where a live plot is drawn: a notebook's output, a terminal, a file. Each draws a chart when it is told to."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from wholebatch.display.chart import Chart
from wholebatch.display.output import Output
from wholebatch.display.text_chart import Row, plain_rows, styled_rows, text_chart
from wholebatch.display.writing import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDEST, _HIGHEST = 110, 26  # cells: a larger chart says no more
_SHOW_CURSOR = "\x1b[?25h"


class Sink:
    """Draws charts; ``interval`` is how many seconds lie between two drawings, at least."""

    interval = 1.0
    eager = True  # draw the first point at once
    name = "plot"

    def draw(self, chart: Chart) -> None:
        """Draw ``chart`` in the place of the one before."""

    def close(self) -> None:
        """Draw no more; may be called again."""


def notebook_shell() -> Any:
    """IPython's shell where it runs in a notebook's kernel, else None; imports nothing."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def show_figure(figure: Figure, alt: str = "") -> None:
    """Show a figure once, as an output of the notebook's cell."""
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    display(_image(figure, alt))


def _image(figure: Figure, alt: str) -> Any:
    from IPython.display import Image

    from wholebatch.display.chart_figure import figure_bytes

    width = int(figure.get_figwidth() * 90)
    return Image(data=figure_bytes(figure, "png"), format="png", width=width, alt=alt or "plot")


class NotebookSink(Sink):
    """One output of a notebook that changes in place.

    A cell that is run again has lost the output it had, so that it gets a new one there.
    """

    interval = 0.5
    name = "notebook"

    def __init__(self, shell: Any, flush: Callable[[], None]) -> None:
        self._shell, self._flush = shell, flush
        self._handle: Any = None
        self._cell = self._execution = ""
        shell.events.register("post_execute", flush)  # what came since the last drawing, when the cell is done

    def draw(self, chart: Chart) -> None:
        """Show the chart, or put it in the place of the one that is shown."""
        from IPython.display import display

        from wholebatch.display.chart_figure import figure_of

        image = _image(figure_of(chart), _in_words(chart))
        if self._handle is None or self._cell_runs_again():
            self._cell, self._execution = self._where()
            known = {"display_id": self._handle.display_id} if self._handle else {"display_id": True}
            self._handle = display(image, **known)
        else:
            self._handle.update(image)

    def close(self) -> None:
        """Leave the output as it is."""
        with suppress(ValueError):  # it was closed before
            self._shell.events.unregister("post_execute", self._flush)

    def _cell_runs_again(self) -> bool:
        if threading.current_thread() is not threading.main_thread():
            return False  # which cell runs says nothing about this thread
        cell, execution = self._where()
        return execution != self._execution and cell == self._cell

    def _where(self) -> tuple[str, str]:
        """The cell that runs, and which of its runs this is."""
        try:
            parent = self._shell.get_parent()
            cell = parent.get("metadata", {}).get("cellId") or parent["content"]["code"]
            return str(cell), str(parent["header"]["msg_id"])
        except Exception:  # another kernel than IPython's own
            return "", ""


def _in_words(chart: Chart) -> str:
    labels = [line.label for panel in chart.panels for line in panel.lines if line.label]
    return f"{chart.title or 'plot'}: {', '.join(labels)}" if labels else chart.title or "plot"


class TerminalSink(Sink):
    """The chart at the bottom of a terminal, changing in place; it stays there at the end."""

    interval = 1 / 8
    name = "terminal"

    def __init__(self, output: Output, color: bool) -> None:
        self._output, self._color = output, color
        self._live: Any = None
        self._closed = False

    def draw(self, chart: Chart) -> None:
        """Draw it; nothing after the terminal was found closed."""
        from rich.console import Group

        if self._closed or not self._output.alive:
            return
        if self._live is None:
            self._open()
        columns, lines = size_of(self._output)
        rows = fitted(chart, columns, lines - 2, self._output)
        self._live.update(Group(*styled_rows(rows)), refresh=True)

    def _open(self) -> None:
        from rich.live import Live

        from wholebatch.display.live import console

        self._live = Live(
            console=console(self._output, self._color),
            auto_refresh=False,
            redirect_stdout=Output(sys.stdout).isatty(),
            redirect_stderr=Output(sys.stderr).isatty(),
        )
        atexit.register(self.close)
        self._live.start()

    def close(self) -> None:
        """Give the terminal back."""
        live, self._live, self._closed = self._live, None, True
        atexit.unregister(self.close)
        if live is not None:
            try:
                live.stop()
            finally:
                self._output.write(_SHOW_CURSOR)
                self._output.flush()


def size_of(output: Output) -> tuple[int, int]:
    """Columns and lines of a terminal; 80 and 24 where it does not say."""
    try:
        size = os.get_terminal_size(output.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24


def fitted(chart: Chart, columns: int, lines: int, output: Output) -> list[Row]:
    """The chart as rows that fit; in ASCII where the stream's encoding has no braille."""
    width, height = min(columns - 1, _WIDEST), min(lines, _HIGHEST)
    return text_chart(chart, width, height, braille=speaks_braille(output))


def write_chart(chart: Chart, stream: TextIO | None, color: bool) -> None:
    """Write the chart once: in colours on a terminal that wants them, as plain text elsewhere."""
    output = Output(stream)
    columns, lines = size_of(output) if output.isatty() else (80, 40)
    rows = fitted(chart, columns, lines - 2, output)
    if color and output.isatty():
        from wholebatch.display.live import console

        shown = console(output, True)
        for row in styled_rows(rows):
            shown.print(row, soft_wrap=True)
        return
    output.write("".join(f"{row}\n" for row in plain_rows(rows)))
    output.flush()


def speaks_braille(output: Output) -> bool:
    """Whether the stream's encoding has braille."""
    try:
        "⣿".encode(output.encoding)
    except (UnicodeError, LookupError):
        return False
    return True


class FileSink(Sink):
    """A picture on disk, whole at every time.

    Args:
        path: ends in .png, .svg or .pdf; its folder is made.
        interval: seconds between two pictures, at least.
        write: takes the path and the bytes.
    """

    eager = False
    name = "file"

    def __init__(self, path: Path, interval: float, write: Callable[[Path, bytes], None] | None = None) -> None:
        self.path, self.interval = path, interval
        self._write = write

    def draw(self, chart: Chart) -> None:
        """Write the picture; raises OSError where that cannot be done."""
        from wholebatch.display.chart_figure import figure_bytes, figure_of

        if self._write is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        data = figure_bytes(figure_of(chart), self.path.suffix[1:].lower())
        (self._write or write_bytes)(self.path, data)
