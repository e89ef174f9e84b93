"""``wholebatch evaluate``: what a run's model reaches on its test data."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from wholebatch.cli.words import As_json, Folder, Run, Work, run_folder, settings

if TYPE_CHECKING:
    from wholebatch.trained.evaluation import Evaluation, OfClass

_AT_MOST = 20  # classes of a table; of more, the worst
_WORST = 10


def evaluate(
    run: Run,
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change.")] = None,
    output: Folder = None,
    as_json: As_json = False,
) -> Work:
    """Evaluate the model of a run on its test data: loss, accuracy, accuracy of each class.

    Writes evaluation.json and confusion.png into the run's folder, or where -o says.
    """
    return partial(_evaluate, run, words or [], output, as_json)


def _evaluate(run: str, words: list[str], output: str | None, as_json: bool) -> None:
    folder, overrides = run_folder("evaluate", run), settings(words)
    from wholebatch import parallel
    from wholebatch.core.url import location
    from wholebatch.trained import evaluation

    found = evaluation.evaluate(folder, overrides)
    if parallel.init().rank:
        return
    print(found.to_json(), end="") if as_json else print(_told(found))
    places = found.write(folder if output is None else location(output))
    if not as_json:
        print(f"\nwritten: {', '.join(places)}")


def _told(found: Evaluation) -> str:
    lines = [f"{name} {value:.6g}" for name, value in found.values.items()]
    return "\n".join([*lines, "", *_table(found.classes)])


def _table(classes: tuple[OfClass, ...]) -> list[str]:
    """A line per class, or of many classes the worst."""
    shown = classes
    if len(classes) > _AT_MOST:
        shown = tuple(sorted((one for one in classes if one.samples), key=lambda one: one.accuracy)[:_WORST])
    rows = [("class", "samples", "accuracy", "most often taken for")]
    for one in shown:
        accuracy = "-" if math.isnan(one.accuracy) else f"{one.accuracy:.4f}"
        mistake = "" if one.taken_for is None else f"{one.taken_for} ({one.times:,})"
        rows.append((one.name, f"{one.samples:,}", accuracy, mistake))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows]
    if len(shown) < len(classes):
        lines.insert(0, f"the {len(shown)} classes of lowest accuracy, of {len(classes):,}; evaluation.json has all:")
    return lines
