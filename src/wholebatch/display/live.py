"""The live display of a terminal: a few lines at the bottom that show where the run is.

Nothing is drawn by another thread: a step draws where enough time has passed since the last
drawing, so that values are read from the device only then.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from wholebatch.core.record import History, Observer, Progress, Record, RunShape
from wholebatch.display import format as text
from wholebatch.display.fields import Field, epoch_field, fit, fold, value_fields, width_of
from wholebatch.display.lines import Epochs, Lines
from wholebatch.display.output import Output, plain
from wholebatch.display.pace import Pace

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_SHOW_CURSOR = "\x1b[?25h"
_SHARE = 0.05  # of the time may go into drawing; a slow terminal is drawn less often
_BAR = (8, 40)  # characters: a narrower bar is left out, a wider one says no more


class Live(Observer):
    """Draws epoch, batches, loss, accuracy, learning rate, samples per second and time left on a terminal.

    A finished epoch leaves one line above. No method raises an ``Exception``: where drawing fails, the
    reason is said in one line and plain lines follow. The cursor is shown again by ``end``, and by
    the interpreter's exit where ``end`` was not called.

    Args:
        stream: a terminal.
        refresh: drawings per second, at most.
        color: False writes no colours and no other styles (``NO_COLOR``); True as the terminal can.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        stream: TextIO | None,
        *,
        refresh: float = 8.0,
        color: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._output = Output(stream)
        self._interval = 1 / refresh
        self._color = color
        self._clock = clock
        self._next = self._next_evaluating = 0.0
        self._evaluating = False  # that is what the display says now
        self._live: Any = None
        self._instead: Lines | None = None
        self.below: Callable[[int, int, Output], list[Text]] | None = None  # draws what stands below the progress

    def start(self, run: RunShape) -> None:
        """Take the terminal."""
        self._run = run
        self._pace = Pace(run, self._clock)
        self._epochs = Epochs(run, self._pace)
        self._values: dict[str, float] = {}
        self._progress: Progress | None = None
        self._finished: list[list[Field]] = []  # lines of finished epochs that are not written yet
        self._stopped = ""
        self._safely(self._open)

    def step(self, progress: Progress) -> None:
        """Draw, where the last drawing is long enough ago."""
        if self._instead is not None:
            self._instead.step(progress)
            return
        self._pace.step(progress)
        self._progress = progress
        if self._clock() >= self._next and self._output.alive:
            self._safely(self._draw_step, progress)

    def record(self, record: Record) -> None:
        """Leave a line where an epoch is finished."""
        if self._instead is not None:
            self._instead.record(record)
        else:
            self._safely(self._add, record)

    def message(self, text: str) -> None:
        """Write ``text`` above the display."""
        if self._instead is not None or self._live is None:
            self._output.line(plain(text))
        else:
            self._safely(self._above, plain(text))

    def end(self, history: History, error: BaseException | None) -> None:
        """Give the terminal back; after an error the last state of the display stays."""
        if self._instead is not None:
            self._instead.end(history, error)
        elif self._live is not None:
            self._safely(self._finish, error)

    def _open(self) -> None:
        from rich.live import Live as RichLive

        self._console = console(self._output, self._color)
        # A stream that goes to a file keeps going there; one that goes to the terminal is written above the display.
        self._live = RichLive(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=Output(sys.stdout).isatty(),
            redirect_stderr=Output(sys.stderr).isatty(),
        )
        atexit.register(self._close)
        self._live.start()
        self._draw()

    def _draw_step(self, progress: Progress) -> None:
        self._finished += self._epochs.flush()  # an epoch that ended without the evaluation it announced
        self._leave()
        self._values = progress.read()
        began = self._clock()
        self._draw()
        # Only the drawing counts: reading waits for the device, which works meanwhile.
        self._next = self._clock() + max(self._interval, (self._clock() - began) / _SHARE)

    def _draw(self) -> None:
        from rich.console import Group

        self._resize()
        width = self._console.width - 1  # a full last column makes some terminals wrap
        panel = self._panel(width)
        self._live.update(Group(*panel, *self._chart(width, self._console.height - len(panel) - 2)), refresh=True)

    def _chart(self, width: int, lines: int) -> list[Text]:
        return [] if self.below is None else self.below(width, lines, self._output)

    def _panel(self, width: int) -> list[RenderableType]:
        if self._progress is None:
            return [_styled(fit([epoch_field(1, self._run.epochs), Field("", "starting", drop=1)], width))]
        progress, steps = self._progress, self._pace.steps_per_epoch
        head = epoch_field(progress.epoch, self._run.epochs)
        state = [Field("", f"{progress.step_in_epoch}/{steps or '?'} batches", "", f"{progress.step_in_epoch}/{steps}")]
        left = self._pace.left()
        if self._stopped or self._epochs.waiting:
            state.append(Field("", self._stopped or "evaluating", drop=1))
        elif left is not None:
            state.append(Field("", f"{text.seconds(left)} left", drop=1))
        values = value_fields(self._values, self._pace.speed())
        lines = [_styled(line) for line in fold(values, width)] if values else []
        return [_bar_line(head, progress.step_in_epoch, steps, state, width), *lines]

    def _add(self, record: Record) -> None:
        self._finished += self._epochs.add(record)
        if record.get("kind") == "epoch" and record.get("split") == "train":
            self._values = {key: record[key] for key in ("loss", "accuracy", "lr") if key in record}
        self._leave()
        if self._epochs.waiting and self._clock() >= self._next_evaluating:
            self._next_evaluating = self._clock() + self._interval
            self._evaluating = True
            self._draw()
        elif self._evaluating and not self._epochs.waiting:
            self._evaluating = False
            self._draw()

    def _leave(self) -> None:
        """Write the lines of finished epochs above the display."""
        while self._finished:
            self._above(_styled(fit(self._finished[0], self._console.width - 1)))
            del self._finished[0]

    def _above(self, line: str | Text) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _resize(self) -> None:
        """Take the width of the stream itself; rich asks standard input first, which may be elsewhere."""
        try:
            size = os.get_terminal_size(self._output.fileno())
        except (OSError, ValueError):
            return
        if size.columns and size.lines:  # a pseudo-terminal without a size says 0
            self._console.size = (size.columns, size.lines)

    def _finish(self, error: BaseException | None) -> None:
        self._finished += self._epochs.flush()
        self._leave()
        if error is not None and self._progress is not None:
            self._stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
            self._draw()
            self._live.transient = False
        else:
            for line in self._chart(self._console.width - 1, self._console.height - 2):
                self._above(line)
        self._close()

    def _close(self) -> None:
        """Stop drawing and show the cursor; may be called again."""
        live, self._live = self._live, None
        atexit.unregister(self._close)
        if live is not None:
            try:
                live.stop()
            finally:
                self._output.write(_SHOW_CURSOR)
                self._output.flush()

    def _safely(self, draw: Callable[..., None], *args: object) -> None:
        """Call ``draw``; where it fails say so once and go on with plain lines."""
        try:
            draw(*args)
        except Exception as error:  # a display is only looked at: it must not stop the run
            try:
                self._close()
            except Exception:
                self._output.write(_SHOW_CURSOR)
            self._instead = Lines(self._output.stream)
            self._instead.message(f"the live display stopped, plain lines follow: {type(error).__name__}: {error}")
            self._instead.take_over(self._epochs, self._finished)


def console(output: Output, color: bool) -> Console:
    """rich's console on a terminal that was chosen before."""
    from rich.console import Console

    return Console(
        file=output,  # type: ignore[arg-type]
        force_terminal=True,
        force_jupyter=False,
        color_system="auto" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
    )


def _styled(fields: list[Field]) -> Text:
    """The fields in one line, their labels dim."""
    from rich.text import Text

    line = Text(no_wrap=True, overflow="crop")
    for place, field in enumerate(fields):
        line.append("  " if place else "")
        line.append(f"{field.label} " if field.label else "", style="dim")
        line.append(field.value, style="bold" if field.label == "test accuracy" else "")
    return line


def _bar_line(head: Field, done: int, steps: int | None, state: list[Field], width: int) -> RenderableType:
    """``epoch 3/40  ━━━━━━━  12/40 batches  0:12 left``; the bar takes what is left of ``width``."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    room = width - width_of([head, *state]) - 2
    if room < _BAR[0] or not steps:
        return _styled(fit([head, *state], width))
    length = min(room, _BAR[1])
    bar = ProgressBar(steps, done, length, style="bright_black", complete_style="cyan", finished_style="cyan")
    row = Table.grid(padding=(0, 2, 0, 0))
    row.add_row(_styled([head]), bar, _styled(state))
    return row
