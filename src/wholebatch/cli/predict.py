"""``wholebatch predict``: what a run's model says of image files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from wholebatch.cli.words import Run, Work, run_folder
from wholebatch.core.errors import ConfigError

if TYPE_CHECKING:
    from wholebatch.trained.prediction import Prediction

_UNREADABLE = 1  # the exit code where a file could not be read


class Format(StrEnum):
    """How predictions are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def predict(
    run: Run,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Image files, or folders of them.")],
    form: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> Work:
    """Print the likeliest class of image files and its probability.

    A file that cannot be read is named on standard error; the others are printed, and the exit code is 1.
    """
    return partial(_predict, run, files, Format.JSON if as_json else form)


def _predict(run: str, paths: list[str], form: Format) -> None:
    folder = run_folder("predict", run)
    for path in paths:
        if "\0" in path:
            raise ConfigError(f"{path!r}: no file has a name with a NUL character")
    from wholebatch.trained import prediction
    from wholebatch.trained.opening import opened

    files = prediction.image_files(paths)
    opened_run = opened(folder)
    unreadable: list[Prediction] = []
    found = _readable(prediction.predict(opened_run, files), unreadable)
    if form is Format.TABLE:
        _print_table(found, max(len(_plain(file)) for file in files), max(map(len, opened_run.inputs.classes)))
    elif form is Format.CSV:
        _print_csv(found)
    else:
        _print_json(found, unreadable)
    if unreadable:
        sys.stdout.flush()
        sys.exit(_UNREADABLE)


def _readable(found: Iterable[Prediction], unreadable: list[Prediction]) -> Iterator[Prediction]:
    """Those that have a class; the others are named on standard error, at once, and gathered."""
    for one in found:
        if one.reason is None:
            yield one
        else:
            unreadable.append(one)
            print(f"wholebatch: {_plain(one.reason)}", file=sys.stderr)


def _print_table(found: Iterable[Prediction], longest_file: int, longest_class: int) -> None:
    """A line per file, as soon as it is known."""
    widths = max(longest_file, len("file")), max(longest_class, len("class"))
    print(f"{'file':<{widths[0]}}  {'class':<{widths[1]}}  probability")
    for one in found:
        print(f"{_plain(one.file):<{widths[0]}}  {one.label:<{widths[1]}}  {one.probability:>11.4f}")


def _print_csv(found: Iterable[Prediction]) -> None:
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(("file", "class", "probability"))
    for one in found:
        lines.writerow((one.file, one.label, f"{one.probability:.6f}"))


def _print_json(found: Iterable[Prediction], unreadable: list[Prediction]) -> None:
    predictions = [{"file": one.file, "class": one.label, "probability": one.probability} for one in found]
    failed = [{"file": one.file, "reason": one.reason} for one in unreadable]
    print(json.dumps({"predictions": predictions, "unreadable": failed}, indent=2))


def _plain(text: str) -> str:
    """``text`` on one line, whatever it holds: a file's name may have line ends and control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
