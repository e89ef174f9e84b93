"""``wholebatch train``: train a recipe, or go on with a run, on one process or several."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

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
Restarts = Annotated[
    int | None,
    typer.Option(
        "--max-restarts",
        metavar="K",
        min=0,
        help="How often to go on from the newest checkpoint after a process was lost; 0 if not said.",
    ),
]
Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder, from its newest checkpoint."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NAME", help="With --resume: what may differ although it changes the result."),
]


class _Workers(NamedTuple):
    """How many processes, and how often they are started anew."""

    processes: int | None
    max_restarts: int | None


def train(
    recipe: Recipe = None,
    words: Words = None,
    files: Files = None,
    processes: Processes = None,
    max_restarts: Restarts = None,
    resume: Resume = None,
    allow: Allow = None,
) -> Work:
    """Train a model, or go on with a run; the run's folder is printed at the end."""
    workers = _Workers(processes, max_restarts)
    if resume is not None:
        return partial(_resume, resume, join(recipe, words), files or [], allow or [], workers)
    if allow:
        raise ConfigError("--allow is about going on with a run; say --resume RUN as well")
    return partial(_train, join(recipe, words), files or [], workers)


def _train(words: list[str], files: list[Path], workers: _Workers) -> None:
    config = load_config(words, files)
    _launch(config, ["train", *words, *(word for file in files for word in ("-c", str(file)))], workers)
    from wholebatch import runs

    runs.train_recipe(config)


def _resume(run: str, words: list[str], files: list[Path], allow: list[str], workers: _Workers) -> None:
    overrides = settings(words)
    if files or any("=" not in word for word in overrides):
        raise ConfigError(f"--resume takes the configuration of {str(run)!r}; change it with key=value alone")
    from wholebatch.config import load_run
    from wholebatch.core.url import location

    config = load_run(location(run), overrides)
    given = ["--resume", run, *(word for name in allow for word in ("--allow", name))]
    _launch(config, ["train", *words, *given], workers)
    from wholebatch import runs

    runs.train_recipe(config, resume=location(run), allow=allow)


def _launch(config: Config, arguments: list[str], workers: _Workers) -> None:
    """Where processes of their own are asked for, start them and end with their exit code."""
    processes, restarts = workers.processes or 1, workers.max_restarts or 0
    if (processes == 1 and not restarts) or _RANK in os.environ:
        return
    from wholebatch.config.build import check_names
    from wholebatch.parallel import launch
    from wholebatch.parallel.choose import check
    from wholebatch.runs import parallel_of

    check_names(config)
    check(parallel_of(config), processes)
    sys.exit(launch(arguments, processes, restarts))
