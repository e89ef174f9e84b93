"""Curves as numbers: what of a history is drawn at which place, in epochs."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from wholebatch.core.record import History, Record

_POINTS = 1500  # a finer line cannot be seen, and makes the svg file large


@dataclass(frozen=True)
class Series:
    """Points of one curve; ``y`` is NaN where the value was not finite."""

    x: list[float]
    y: list[float]

    def __bool__(self) -> bool:
        """Whether there is anything to see."""
        return any(math.isfinite(value) for value in self.y)


class Places:
    """Translates steps into epochs, through the ends of epochs that the history knows.

    Without any finished epoch a place is a step; :attr:`unit` says which.
    """

    def __init__(self, history: History) -> None:
        ends = {0: 0.0}
        for record in history.select("train", "epoch"):
            if record.get("step", 0) > 0:
                ends[int(record["step"])] = float(record["epoch"])
        self._ends = sorted(ends.items())
        self.unit = "epoch" if len(ends) > 1 else "step"

    def of(self, record: Record) -> float:
        """The place of a record: an epoch's is its end."""
        if record["kind"] == "epoch":
            return float(record["epoch"])
        return self._of_step(float(record["step"]))

    def _of_step(self, step: float) -> float:
        if len(self._ends) < 2:
            return step
        after = min(max(1, bisect_left(self._ends, (step, 0.0))), len(self._ends) - 1)
        (s0, e0), (s1, e1) = self._ends[after - 1], self._ends[after]
        return e0 + (e1 - e0) * (step - s0) / (s1 - s0)


def series(history: History, places: Places, split: str, kind: str, key: str) -> Series:
    """One value of one split and kind along the run; records without it are passed over.

    Long series are thinned to every n-th record, the last one kept.

    >>> history = History([{"kind": "epoch", "split": "test", "step": 3, "epoch": 1, "accuracy": 0.5}])
    >>> series(history, Places(history), "test", "epoch", "accuracy")
    Series(x=[1.0], y=[0.5])
    """
    records = [record for record in history.select(split, kind) if key in record]
    stride = max(1, math.ceil(len(records) / _POINTS))
    if stride > 1:
        records = records[(len(records) - 1) % stride :: stride]
    return Series([places.of(record) for record in records], [_finite(record[key]) for record in records])


def _finite(value: object) -> float:
    try:
        x = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan
    return x if math.isfinite(x) else math.nan
