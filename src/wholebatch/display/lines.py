"""One plain line per epoch, and per step that is recorded, for pipes, files and machines that build.

No carriage return, no escape.
"""

from __future__ import annotations

from typing import TextIO

from wholebatch.core.record import History, Observer, Progress, Record, RunShape
from wholebatch.display.fields import Field, epoch_fields, join, step_fields
from wholebatch.display.output import Output, plain
from wholebatch.display.pace import Pace


class Epochs:
    """Makes one line of fields of an epoch's train record and its test record.

    Where the run evaluates, a train record waits for its test record; it is given out without one as
    soon as the next epoch begins or the run ends.
    """

    def __init__(self, run: RunShape, pace: Pace) -> None:
        self.run = run
        self.pace = pace
        self._waiting: tuple[Record, float | None] | None = None

    @property
    def waiting(self) -> bool:
        """Whether a train record waits for its test record."""
        return self._waiting is not None

    def add(self, record: Record) -> list[list[Field]]:
        """Note a record; return the lines that are finished by it."""
        if record.get("kind") == "step":
            return [*self.flush(), step_fields(self.run, record)]
        if record.get("kind") != "epoch":
            return []
        if record.get("split") == "train":
            finished = self.flush()
            self._waiting = (record, self.pace.record(record))
            return finished if self.run.evaluates else [*finished, *self.flush()]
        self.pace.record(record)
        if self._waiting is None or self._waiting[0].get("epoch") != record.get("epoch"):
            return [*self.flush(), epoch_fields(self.run, None, record, None)]
        (train, speed), self._waiting = self._waiting, None
        return [epoch_fields(self.run, train, record, speed)]

    def flush(self) -> list[list[Field]]:
        """Return the line of a train record that waited in vain."""
        if self._waiting is None:
            return []
        (train, speed), self._waiting = self._waiting, None
        return [epoch_fields(self.run, train, None, speed)]


class Lines(Observer):
    """Writes one line per epoch to ``stream``, and one per step that is recorded, flushed at once; never raises an
    ``Exception``.

    Example of a line::

        epoch  3/40  loss 0.2143  accuracy 94.12 %  test accuracy 95.00 %  lr 0.0500  12,340 samples/s
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._output = Output(stream)
        self._epochs: Epochs | None = None

    def start(self, run: RunShape) -> None:
        """Begin; writes nothing."""
        self._epochs = Epochs(run, Pace(run))

    def take_over(self, epochs: Epochs, lines: list[list[Field]]) -> None:
        """Begin in the middle of a run, with ``lines`` that somebody else could not write."""
        self._epochs = epochs
        self._write(lines)

    def step(self, progress: Progress) -> None:
        """Note the time; reads nothing from the device."""
        if self._epochs is not None:
            self._epochs.pace.step(progress)
            if self._epochs.waiting:
                self._write(self._epochs.flush())

    def record(self, record: Record) -> None:
        """Write the line that this record finishes, if any."""
        if self._epochs is not None:
            try:
                self._write(self._epochs.add(record))
            except Exception as error:  # a line is only looked at: it must not stop the run
                self._output.line(f"(this epoch's line cannot be written: {type(error).__name__}: {error})")

    def message(self, text: str) -> None:
        """Write ``text`` as one line."""
        self._output.line(plain(text))

    def end(self, history: History, error: BaseException | None) -> None:
        """Write what still waits."""
        if self._epochs is not None:
            self._write(self._epochs.flush())
            self._epochs = None

    def _write(self, lines: list[list[Field]]) -> None:
        for fields in lines:
            self._output.line(join(fields))
