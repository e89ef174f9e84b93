"""A chart as lines of text, for terminals and pipes: braille dots, axes with numbers, a letter at each line's end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from wholebatch.display.braille import Canvas
from wholebatch.display.chart import Chart, Line, Panel, bounds, thin
from wholebatch.display.look import letter, terminal_color
from wholebatch.display.output import printable

if TYPE_CHECKING:
    from rich.text import Text

Piece = tuple[str, int]  # a text, and the number of the line it belongs to; -1: none
Row = list[Piece]

_NARROW = 24  # columns: below this there is no room for a chart
_ROWS = 3  # of dots, the fewest of a panel


def text_chart(chart: Chart, width: int, height: int, braille: bool = True) -> list[Row]:
    """Return ``chart`` in at most ``width`` columns and about ``height`` rows.

    Panels for which there is no room are left out, the last ones first; where there is none at all, nothing is
    returned. Without ``braille`` only ASCII is used, beside what labels hold.
    """
    panels = [panel for panel in chart.panels if any(line.last() is not None for line in panel.lines)]
    legends = [_legend(panel, width, max(1, height // 4)) for panel in panels]
    while panels and height < _needed(legends[: len(panels)], chart):
        panels.pop()
    if not panels or width < _NARROW:
        return []
    rows: list[Row] = [[(printable(chart.title)[:width], -1)]] if chart.title else []
    room = (height - _needed(legends[: len(panels)], chart)) // len(panels) + _ROWS
    axes = [_Vertical.of(panel, room) for panel in panels]
    margin = max(len(label) for axis in axes for label in axis.labels.values())
    low, high = chart.bounds()
    for place, (panel, axis, legend) in enumerate(zip(panels, axes, legends, strict=False)):
        canvas = Canvas(width - margin - 4, room)
        ends = _draw(canvas, panel, chart, axis, low, high)
        rows += [[(_heading(panel), -1)], *legend] if panel.ylabel else legend
        rows += _framed(canvas, axis, ends, margin, braille)
        if place == len(panels) - 1:
            rows += _floor(canvas.width, margin, low, high, chart, braille)
    return rows


def plain_rows(rows: list[Row]) -> list[str]:
    """The rows without colours."""
    return ["".join(piece for piece, _ in row).rstrip() for row in rows]


def styled_rows(rows: list[Row]) -> list[Text]:
    """The rows with the colours of a terminal."""
    from rich.text import Text

    made = []
    for row in rows:
        line = Text(no_wrap=True, overflow="crop")
        for piece, owner in row:
            line.append(piece, style=terminal_color(owner) if owner >= 0 else "")
        made.append(line)
    return made


def _needed(legends: Sequence[list[Row]], chart: Chart) -> int:
    """The fewest rows: of title and x axis, and of every panel."""
    return 2 + bool(chart.title) + sum(1 + len(legend) + _ROWS for legend in legends)


def _heading(panel: Panel) -> str:
    return printable(panel.ylabel) + (" (log scale)" if panel.yscale == "log" else "")


@dataclass(frozen=True)
class _Vertical:
    """A y axis: its bounds, and the number beside some of its rows (counted from the top)."""

    low: float
    high: float
    log: bool
    labels: dict[int, str]

    @classmethod
    def of(cls, panel: Panel, rows: int) -> _Vertical:
        log = panel.yscale == "log"
        low, high = bounds([line.y for line in panel.lines], panel.yscale, panel.ylim)
        axis = cls(low, high, log, {})
        for value, label in ticks(low, high, max(3, rows // 3), log):
            row = rows - 1 - axis.place(value, rows)
            axis.labels.setdefault(row, label)
        return axis

    def part(self, value: float) -> float:
        """Where ``value`` is, 0 at the bottom and 1 at the top."""
        if self.log:
            if value <= 0:
                return math.nan
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def place(self, value: float, cells: int) -> int:
        """The dot or row of ``cells`` of them, from the bottom; far away for one that cannot be shown."""
        part = self.part(value)
        return min(max(math.floor(part * (cells - 1) + 0.5), -cells), 2 * cells) if math.isfinite(part) else -cells


def ticks(low: float, high: float, count: int, log: bool = False) -> list[tuple[float, str]]:
    """Round numbers between two, about ``count`` of them, with their texts; the two themselves where none is round.

    >>> [label for _, label in ticks(0.0, 2.3, 5)]
    ['0.0', '0.5', '1.0', '1.5', '2.0']
    >>> [label for _, label in ticks(2e-4, 3.0, 4, log=True)]
    ['0.001', '0.01', '0.1', '1']
    """
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        stride = max(1, -(-(last - first + 1) // count))
        found = [(10.0**power, f"{10.0**power:g}") for power in range(first, last + 1, stride)]
        return found if len(found) > 1 else [(low, f"{low:.3g}"), (high, f"{high:.3g}")]
    rough = (high - low) / max(1, count)
    size = 10.0 ** math.floor(math.log10(rough))
    sizes = [size * unit for unit in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    chosen = next(place for place, step in enumerate(sizes) if step >= rough * (1 - 1e-9))
    for step in sizes[chosen::-1]:  # a finer one where hardly any number would be seen
        values = [step * place for place in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
        if len(values) >= min(3, count):
            break
    if max(abs(low), abs(high)) >= 1e7 or step < 1e-5:
        return [(value, f"{value:.3g}") for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(value, f"{value:,.{decimals}f}") for value in values]


def _draw(canvas: Canvas, panel: Panel, chart: Chart, axis: _Vertical, low: float, high: float) -> list[int | None]:
    """Draw the lines; return the row, from the top, in which each one ends."""
    across = _Vertical(low, high, chart.xscale == "log", {})
    ends: list[int | None] = []
    for index, line in enumerate(panel.lines):
        x, y = thin(line.x, line.y, 2 * canvas.width, low, high, chart.xscale)
        points = [
            (across.place(a, 2 * canvas.width), axis.place(b, 4 * canvas.height)) if np.isfinite(a + b) else None
            for a, b in zip(x.tolist(), y.tolist(), strict=True)
        ]
        canvas.path(points, index)
        last = next((point for point in reversed(points) if point is not None), None)
        row = None if last is None else canvas.height - 1 - last[1] // 4
        ends.append(row if row is not None and 0 <= row < canvas.height else None)
    return ends


def _framed(canvas: Canvas, axis: _Vertical, ends: list[int | None], margin: int, braille: bool) -> list[Row]:
    """The canvas with the numbers at its left and the letters of the lines at its right."""
    bar, tick = ("│", "┤") if braille else ("|", "+")
    letters: dict[int, list[int]] = {}
    for index, end in enumerate(ends):
        if end is not None:
            letters.setdefault(end, []).append(index)
    rows: list[Row] = []
    for number, cells in enumerate(canvas.rows(braille)):
        label = axis.labels.get(number)
        row: Row = [(f"{label or '':>{margin}} {tick if label else bar}", -1)]
        for owner, run in groupby(cells, key=lambda cell: cell[1]):
            row.append(("".join(character for character, _ in run), owner))
        row += [(letter(index), index) for index in letters.get(number, [])[:2]]
        rows.append(row)
    return rows


def _floor(width: int, margin: int, low: float, high: float, chart: Chart, braille: bool) -> list[Row]:
    """The x axis, its numbers, and its label at the right."""
    corner, dash, tick = ("└", "─", "┬") if braille else ("+", "-", "+")
    across = _Vertical(low, high, chart.xscale == "log", {})
    rule, numbers = [dash] * width, [" "] * (width + margin + 4)
    label = printable(chart.xlabel)[: width // 2]
    free = 0
    limit = len(numbers) - (len(label) + 2 if label else 0)
    for value, number in ticks(low, high, max(3, width // 12), across.log):
        if chart.whole_x and value != int(value):
            continue
        at = across.place(value, width)
        begin = max(0, margin + 2 + at - len(number) // 2)
        if begin < free or begin + len(number) > limit:
            continue
        rule[at] = tick
        numbers[begin : begin + len(number)] = number
        free = begin + len(number) + 2
    if label:
        numbers[-len(label) :] = label
    return [[(" " * (margin + 1) + corner + "".join(rule), -1)], [("".join(numbers), -1)]]


def _legend(panel: Panel, width: int, most: int) -> list[Row]:
    """Letter, label and last value of every line, on as many rows as they need but at most ``most``."""
    rows: list[Row] = [[]]
    used = 0
    for index, line in enumerate(panel.lines):
        entry = _entry(line, index)[: width - 2]
        if used and used + len(entry) + 3 > width:
            rows.append([])
            used = 0
        rows[-1] += [("   ", -1)] if used else []
        rows[-1].append((entry, index))
        used += len(entry) + 3
    left_out = sum(1 for row in rows[most:] for _, owner in row if owner >= 0)
    return [*rows[:most], *([[(f"and {left_out} more", -1)]] if left_out else [])]


def _entry(line: Line, index: int) -> str:
    last = line.last()
    words = [f"{letter(index)}:", printable(line.label), "" if last is None else f"{last:.4g}"]
    return " ".join(word for word in words if word)
