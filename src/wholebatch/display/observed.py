"""What a live plot keeps of a run that it observes: lines by epoch, a panel per value."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from wholebatch.core.errors import RunFolderError
from wholebatch.core.record import Progress, Record, RunShape
from wholebatch.core.url import Url
from wholebatch.display.chart import Line, Panel
from wholebatch.display.jsonl import NAME, read_history

_LOG_FROM = 100.0  # largest over smallest loss: from here on a linear axis shows only the beginning


class Observed:
    """The records of one run, as lines; not safe to use from several threads at once.

    Args:
        values: names of values, each of which gets a panel where the records have it.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self._values = tuple(values)
        self._run: RunShape | None = None
        self._lines: dict[tuple[str, str], tuple[array[float], array[float]]] = {}

    @property
    def run_dir(self) -> Path | Url | None:
        """The folder of the run."""
        return None if self._run is None else self._run.run_dir

    @property
    def title(self) -> str:
        """The title of the run."""
        return "" if self._run is None else self._run.title

    @property
    def xlabel(self) -> str:
        """What the lines are drawn over."""
        return "epoch" if self._run is not None and self._run.steps_per_epoch else "step"

    def start(self, run: RunShape) -> None:
        """A run begins, or goes on: the records that its folder has are taken."""
        self._run = run
        self._lines.clear()
        if run.run_dir is not None and (run.run_dir / NAME).exists():
            with suppress(RunFolderError):  # the run itself says what is wrong with it
                for record in read_history(run.run_dir):
                    self.add(record)

    def add(self, record: Record) -> None:
        """Take a record."""
        split, fine = record.get("split", ""), record.get("kind") == "step"
        at = self._place(record.get("step", math.nan))
        for name in self._values:
            if isinstance(record.get(name), (int, float)):
                line = f"{split} {name}{' of steps' if fine else ''}"
                x, y = self._lines.setdefault((name, line), (array("d"), array("d")))
                x.append(at)
                y.append(record[name])

    def panels(self, progress: Progress | None = None) -> list[Panel]:
        """What there is, a panel for every value; with ``progress`` its running values stand at the end."""
        values = {} if progress is None else progress.read()
        at = math.nan if progress is None else self._place(progress.step)
        running = {name: (at, values[name]) for name in self._values if name in values}
        return [panel for value in self._values if (panel := self._panel(value, running.get(value))).lines]

    def _panel(self, value: str, running: tuple[float, float] | None) -> Panel:
        found = {line: kept for (name, line), kept in self._lines.items() if name == value}
        if running is not None:
            found.setdefault(f"train {value}", (array("d"), array("d")))
        factor = 100.0 if value == "accuracy" else 1.0
        lines = []
        for name, (x, y) in found.items():
            more = [running] if running is not None and name == f"train {value}" else []
            xs, ys = np.append(np.array(x), [a for a, _ in more]), np.append(np.array(y), [b for _, b in more])
            lines.append(Line(name, xs, factor * ys))
        return Panel("accuracy (%)" if value == "accuracy" else value, lines, scale_for(value, lines))

    def _place(self, step: float) -> float:
        per_epoch = self._run.steps_per_epoch if self._run is not None else None
        return step / per_epoch if per_epoch else float(step)


def scale_for(value: str, lines: Sequence[Line]) -> str:
    """A logarithmic axis for a loss of many sizes, else a linear one."""
    everything = np.concatenate([line.y[np.isfinite(line.y)] for line in lines]) if lines else np.empty(0)
    wide = everything.size and everything.min() > 0 and everything.max() >= _LOG_FROM * everything.min()
    return "log" if value == "loss" and wide else "linear"
