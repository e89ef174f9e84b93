"""``wholebatch evaluate``: what a run's model reaches on its test data."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from wholebatch.cli.words import Work, settings
from wholebatch.core.errors import RunFolderError
from wholebatch.core.url import location


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change.")] = None,
) -> Work:
    """Evaluate the model of a run on its test data."""
    return partial(_evaluate, run, words or [])


def _evaluate(run: str, words: list[str]) -> None:
    folder = location(run)
    if "=" in run and not folder.exists():
        raise RunFolderError(f"evaluate takes the folder of a run first, got {run!r}")
    overrides = settings(words)
    from wholebatch import runs

    for name, value in runs.evaluate_run(folder, overrides).items():
        print(f"{name} {value:.6g}")
