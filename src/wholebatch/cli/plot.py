"""``wholebatch plot``: the curves of runs, or a schedule before a run, as a picture or on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wholebatch.cli.words import Work
from wholebatch.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from wholebatch.display.chart import Chart

Runs = Annotated[
    list[Path] | None, typer.Argument(metavar="RUN...", help="Folders of runs; several are drawn over each other.")
]
Output = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write a picture (.png, .svg, .pdf) instead of text."),
]
Along = Annotated[
    str | None, typer.Option("-x", "--x", metavar="AXIS", help="epoch (if nothing is said), step, samples or time.")
]
Values = Annotated[
    list[str] | None,
    typer.Option("-y", "--y", metavar="VALUE", help="loss, accuracy, lr, …; may be repeated."),
]
Schedules = Annotated[
    list[str] | None,
    typer.Option(
        "--schedule", metavar="YAML", help="A schedule instead of runs, such as '{shape: cosine, max_update: 20}'."
    ),
]
Until = Annotated[
    float | None, typer.Option("--until", metavar="N", help="With --schedule: how far to draw, in what it counts.")
]


def plot(
    runs: Runs = None,
    output: Output = None,
    x: Along = None,
    y: Values = None,
    schedule: Schedules = None,
    until: Until = None,
) -> Work:
    """Draw the curves of runs, or a schedule; on standard output unless -o names a file."""
    if schedule:
        if runs or x or y:
            raise ConfigError("--schedule draws schedules alone; leave RUN, --x and --y out")
        return partial(_schedules, schedule, until, output)
    if not runs:
        raise InputError("plot needs the folder of a run, or --schedule '{shape: cosine, max_update: 20}'")
    if until is not None:
        raise ConfigError("--until is about --schedule; leave it out")
    return partial(_runs, runs, x, y or [], output)


def _runs(runs: list[Path], x: str | None, values: list[str], output: Path | None) -> None:
    from wholebatch.display import curves, read_history
    from wholebatch.display.overlay import names_of, overlay

    _check(output)
    if len(set(map(os.path.abspath, runs))) < len(runs):
        raise InputError("a run is named twice; name each once")
    histories = dict(zip(names_of(runs), map(read_history, runs), strict=True))
    title = next(iter(histories)) if len(runs) == 1 else ""
    chart = overlay(histories, x or "epoch", values, title)
    if output is not None and len(runs) == 1 and x is None and not values:
        _write(lambda: curves(next(iter(histories.values())), output, title=title), output)  # as in the run folder
    else:
        _draw(chart, output)


def _schedules(texts: list[str], until: float | None, output: Path | None) -> None:
    from wholebatch.config.lone_schedule import lone_schedule
    from wholebatch.display.chart import Chart, Panel
    from wholebatch.display.plotting import schedule_line

    _check(output)
    if until is not None and not 0 < until < float("inf"):
        raise InputError(f"--until {until:g}: expected a number above 0")
    made = [lone_schedule(text) for text in texts]
    units = {unit for _, _, unit in made}
    if len(units) > 1:
        raise ConfigError("these schedules count different things; draw them one by one")
    shapes = [shape for _, shape, _ in made]
    labels = [f"{shape} {place}" if shapes.count(shape) > 1 else shape for place, shape in enumerate(shapes, 1)]
    ends = [float(schedule_line(rates).x[-1]) for rates, _, _ in made if rates.end < float("inf")]
    until = until or max(ends, default=None)
    lines = [schedule_line(rates, label, until) for (rates, _, _), label in zip(made, labels, strict=True)]
    _draw(Chart([Panel("learning rate", lines)], units.pop(), "", whole_x=True), output)


def _check(output: Path | None) -> None:
    if output is not None:
        from wholebatch.display.liveplot import picture_path

        picture_path(output)


def _draw(chart: Chart, output: Path | None) -> None:
    """Write the chart to a file and say so, or as text to standard output."""
    if output is None:
        from wholebatch.display.sinks import write_chart

        write_chart(chart, sys.stdout, color=not os.environ.get("NO_COLOR"))
        return
    from wholebatch.display.chart_figure import figure_bytes, figure_of
    from wholebatch.display.writing import write_bytes

    _write(lambda: write_bytes(output, figure_bytes(figure_of(chart), output.suffix[1:].lower())), output)


def _write(write: Callable[[], object], output: Path) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(f"{str(output)!r} cannot be written: {error.strerror or error}; choose another -o") from error
    print(f"wrote {output}")
