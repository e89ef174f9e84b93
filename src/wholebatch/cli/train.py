"""``wholebatch train``: train a recipe, or go on with a run, on one process or several."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wholebatch.cli.words import Files, Recipe, Words, Work, join, load_config, settings
from wholebatch.core.errors import ConfigError

if TYPE_CHECKING:
    from wholebatch.config import Config

_RANK = "RANK"  # torchrun's name for a process's number

Processes = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Share the work among N processes of this machine."),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder, from its newest checkpoint."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NAME", help="With --resume: what may differ although it changes the result."),
]


def train(
    recipe: Recipe = None,
    words: Words = None,
    files: Files = None,
    processes: Processes = None,
    resume: Resume = None,
    allow: Allow = None,
) -> Work:
    """Train a model, or go on with a run; the run's folder is printed at the end."""
    if resume is not None:
        return partial(_resume, resume, join(recipe, words), files or [], allow or [], processes)
    if allow:
        raise ConfigError("--allow is about going on with a run; say --resume RUN as well")
    return partial(_train, join(recipe, words), files or [], processes)


def _train(words: list[str], files: list[Path], processes: int | None) -> None:
    config = load_config(words, files)
    _launch(config, ["train", *words, *(word for file in files for word in ("-c", str(file)))], processes)
    from wholebatch import runs

    runs.train_recipe(config)


def _resume(run: Path, words: list[str], files: list[Path], allow: list[str], processes: int | None) -> None:
    overrides = settings(words)
    if files or any("=" not in word for word in overrides):
        raise ConfigError(f"--resume takes the configuration of {str(run)!r}; change it with key=value alone")
    from wholebatch.config import load_run

    config = load_run(run, overrides)
    given = ["--resume", str(run), *(word for name in allow for word in ("--allow", name))]
    _launch(config, ["train", *words, *given], processes)
    from wholebatch import runs

    runs.train_recipe(config, resume=run, allow=allow)


def _launch(config: Config, arguments: list[str], processes: int | None) -> None:
    """Where several processes are asked for, start them and end with their exit code."""
    if processes is None or processes == 1 or _RANK in os.environ:
        return
    from wholebatch.config.build import check_names
    from wholebatch.parallel import launch

    check_names(config)
    sys.exit(launch(arguments, processes))
