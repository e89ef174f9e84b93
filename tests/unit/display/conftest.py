"""Fake runs, and a pseudo-terminal with a screen that can be read."""

import math
import os
import re
import threading
from pathlib import Path

import pytest

from wholebatch.core.record import History, Progress, RunShape

_PIECES = re.compile(r"\x1b\[(\??)(\d*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Run:
    """A run of records that nobody computed."""

    def __init__(self, epochs=3, steps=4, batch=512, evaluates=True, accuracy=True, seconds=0.2):
        self.epochs, self.steps, self.batch = epochs, steps, batch
        self.evaluates, self.accuracy, self.seconds = evaluates, accuracy, seconds
        self.now = 0.0
        self.reads = 0
        self.history = History()
        self.shape = RunShape(epochs, steps, steps * batch, batch, "cpu", "digits", None, evaluates)

    def clock(self):
        """The time by this run's own clock, which every step moves on."""
        return self.now

    def values(self, step):
        values = {"loss": 1 / step, "lr": 0.05}
        return {**values, "accuracy": 1 - 0.5 / step} if self.accuracy else values

    def read(self, step):
        self.reads += 1
        return self.values(step)

    def records(self, epoch):
        step = epoch * self.steps
        place = {"kind": "epoch", "step": step, "epoch": epoch, "samples": step * self.batch}
        train = {**place, "split": "train", **self.values(step), "seconds": 0.5}
        test = {**place, "split": "test", "loss": 1.1 / step}
        if self.accuracy:
            test["accuracy"] = 0.95
        return [train, test] if self.evaluates else [train]

    def drive(self, *observers, fail_at=None, error=KeyboardInterrupt):
        """Call the observers as a loop does; return the error that ended it."""
        for observer in observers:
            observer.start(self.shape)
        caught = None
        try:
            for epoch in range(1, self.epochs + 1):
                self.drive_epoch(epoch, observers, fail_at, error)
        except (KeyboardInterrupt, RuntimeError) as found:
            caught = found
        for observer in observers:
            observer.end(self.history, caught)
        return caught

    def drive_epoch(self, epoch, observers, fail_at=None, error=KeyboardInterrupt):
        for place in range(1, self.steps + 1):
            step = (epoch - 1) * self.steps + place
            if step == fail_at:
                raise error("stop")
            self.now += self.seconds
            progress = Progress(epoch, step, place, step * self.batch, lambda step=step: self.read(step))
            for observer in observers:
                observer.step(progress)
        for record in self.records(epoch):
            self.history.records.append(record)
            for observer in observers:
                observer.record(record)


class Screen:
    """What a terminal of some columns shows after ``data``: as much of one as rich writes."""

    def __init__(self, data, columns):
        self.rows, self.row, self.column, self.cursor, self.wrapped = [""], 0, 0, True, 0
        assert "".join(match.group() for match in _PIECES.finditer(data)) == data
        for match in _PIECES.finditer(data):
            self._take(*match.groups(), columns)
        self.lines = [row.rstrip() for row in self.rows if row.strip()]

    def _take(self, private, count, code, carriage, newline, text, columns):
        if carriage:
            self.column = 0
        elif newline:
            self.row += 1
            self.rows += [""] * (self.row + 1 - len(self.rows))
        elif text:
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + text + row[self.column + len(text) :]
            self.column += len(text)
            self.wrapped += self.column >= columns
        elif code == "A":
            self.row -= int(count or 1)
        elif code == "K":
            self.rows[self.row] = ""
        elif private and count == "25":
            self.cursor = code == "h"
        else:
            assert code == "m", code


class Terminal:
    """A pseudo-terminal: write to ``stream``; ``read()`` what arrived."""

    def __init__(self, columns, lines, encoding):
        import fcntl
        import pty
        import struct
        import termios

        self.columns = columns
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.stream = open(slave, "w", encoding=encoding)  # noqa: SIM115
        self._data = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self._data += data

    def read(self):
        """Close the stream and return everything that was written, as text."""
        if not self.stream.closed:
            self.stream.close()
            self._reader.join(10)
            os.close(self._master)
        return self._data.decode("utf-8")

    def screen(self):
        return Screen(self.read(), self.columns)


@pytest.fixture
def terminal():
    """Make a pseudo-terminal."""
    pytest.importorskip("pty")
    made = []

    def make(columns=100, lines=24, encoding="utf-8"):
        made.append(Terminal(columns, lines, encoding))
        return made[-1]

    yield make
    for one in made:
        one.read()


@pytest.fixture
def fake_run():
    """The class of fake runs."""
    return Run


@pytest.fixture
def golden():
    """The text of a golden file; WHOLEBATCH_GOLDEN=1 writes it anew."""

    def compare(name, text):
        path = Path(__file__).parents[2] / "golden" / name
        if os.environ.get("WHOLEBATCH_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture
def fine_history():
    """A function that makes a history with step records, accuracies and rates."""

    def make(epochs=4, steps=5, fine=True, accuracy=True, lr=True, test=True):
        history = History()
        for step in range(1, epochs * steps + 1):
            epoch = math.ceil(step / steps)
            base = {"step": step, "epoch": epoch, "samples": 64 * step}
            values = {"loss": 2.0 / step, **({"lr": 0.1 / step} if lr else {})}
            if fine:
                history.records.append({**base, "kind": "step", "split": "train", **values})
            if step % steps == 0:
                right = {"accuracy": 1 - 0.5 / epoch} if accuracy else {}
                history.records.append({**base, "kind": "epoch", "split": "train", **values, **right})
                if test:
                    history.records.append({**base, "kind": "epoch", "split": "test", "loss": 2.2 / step, **right})
        return history

    return make
