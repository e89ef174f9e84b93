"""Several runs in one chart: by step, epoch, samples or time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from wholebatch.core.errors import InputError, nearest
from wholebatch.core.record import History, Record
from wholebatch.display.chart import Chart, Line, Panel
from wholebatch.display.observed import scale_for
from wholebatch.display.series import Places

AXES = ("epoch", "step", "samples", "time")
_NO_VALUES = {"step", "epoch", "samples", "kind", "split", "seconds"}
_USUAL = ("loss", "accuracy")
_UNITS = ((10 * 3600.0, 3600.0, "h"), (600.0, 60.0, "min"), (0.0, 1.0, "s"))  # from how many seconds on, each


def overlay(histories: Mapping[str, History], x: str = "epoch", values: Sequence[str] = (), title: str = "") -> Chart:
    """Return the chart of runs: a panel for each value, a line for each run and split.

    By epoch a point is an epoch. By anything else it is a record of steps, where training has them. Time is that of
    training, without evaluations; a step within an epoch is placed in proportion.

    Args:
        histories: the runs, by the names that the legend gives them.
        x: "epoch", "step", "samples" or "time".
        values: what is drawn; loss and accuracy, as far as they are there, if empty.
        title: the headline.

    Raises:
        InputError: no run has such a value, or no times; an unknown ``x``.
    """
    if x not in AXES:
        raise InputError(f"x={x!r}; expected {', '.join(AXES[:-1])} or {AXES[-1]}{nearest(x, AXES)}")
    known = {name for history in histories.values() for record in history for name in record} - _NO_VALUES
    known = {name for name in known if any(_is_number(r.get(name)) for h in histories.values() for r in h)}
    if not known:
        raise InputError(f"there are no records yet in {', '.join(histories)}; nothing can be drawn")
    for value in values:
        if value not in known:
            raise InputError(f"no run has {value!r}{nearest(value, known)}; there are {', '.join(sorted(known))}")
    shown = values or [value for value in _USUAL if value in known] or sorted(known)[:1]
    clocks = {name: _clock(name, history) for name, history in histories.items()} if x == "time" else {}
    longest = max([seconds for ends in clocks.values() for seconds in ends.values()], default=0.0)
    _, size, unit = next(one for one in _UNITS if longest >= one[0])
    panels = []
    for value in shown:
        lines = []
        for name, history in histories.items():
            lines += _lines(history, name if len(histories) > 1 else "", value, x, clocks.get(name, {}), size)
        panels.append(Panel("accuracy (%)" if value == "accuracy" else value, lines, scale_for(value, lines)))
    labels = {"time": f"training time ({unit})", "epoch": _epoch_or_step(histories)}
    return Chart(panels, labels.get(x, x), title, whole_x=x != "time")


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each run folder: as much of the path's end as tells them apart.

    >>> names_of([Path("runs/a"), Path("runs/b/"), Path("old/a")])
    ['runs/a', 'runs/b', 'old/a']
    >>> names_of([Path("runs/a"), Path("runs/b")])
    ['a', 'b']
    """
    parts = [Path(path).absolute().parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _epoch_or_step(histories: Mapping[str, History]) -> str:
    units = {Places(history).unit for history in histories.values()}
    if len(units) > 1:
        raise InputError("some of these runs have finished no epoch; draw them by step: --x step")
    return units.pop()


def _lines(history: History, name: str, value: str, x: str, clock: Mapping[int, float], size: float) -> list[Line]:
    places, lines = Places(history), []
    factor = 100.0 if value == "accuracy" else 1.0
    for split in ("train", "test"):
        epochs = [r for r in history.select(split, "epoch") if _is_number(r.get(value))]
        steps = [r for r in history.select(split, "step") if _is_number(r.get(value))]
        records = (epochs or steps) if x == "epoch" else (steps or epochs)
        if records:
            at = [_place(record, x, places, clock) / size for record in records]
            y = factor * np.array([float(record[value]) for record in records])
            lines.append(Line(f"{name} {split} {'' if name else value}".strip(), np.array(at, dtype=float), y))
    return lines


def _place(record: Record, x: str, places: Places, clock: Mapping[int, float]) -> float:
    if x == "epoch":
        return places.of(record)
    if x != "time":
        return float(record.get(x, math.nan))
    ends = sorted(clock.items())
    step = record["step"]
    for (s0, t0), (s1, t1) in pairwise(ends):
        if s0 <= step <= s1:
            return t0 + (t1 - t0) * (step - s0) / (s1 - s0)
    (s0, t0), (s1, t1) = ends[-2:]  # an epoch that is not finished: as fast as the one before
    return t1 + (t1 - t0) * (step - s1) / (s1 - s0)


def _clock(name: str, history: History) -> dict[int, float]:
    """Seconds of training until each epoch's last step."""
    ends, total = {0: 0.0}, 0.0
    for record in history.select("train", "epoch"):
        if not _is_number(record.get("seconds")):
            raise InputError(f"the records of {name} have no times; draw them by step: --x step")
        total += record["seconds"]
        ends[int(record["step"])] = total
    if len(ends) < 2:
        raise InputError(f"{name} has finished no epoch, so that its times are not known; draw it by step: --x step")
    return ends


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
