"""``wholebatch verify``: is the step of a recipe that of the whole batch, however it is cut?"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wholebatch.cli.words import Files, Recipe, Words, Work, join, load_config
from wholebatch.core.errors import ConfigError

NOT_OK = 1
_STEPS = 5

Bitwise = Annotated[
    bool, typer.Option("--bitwise", help="Train a few steps in several numbers of processes and compare every bit.")
]
Counts = Annotated[
    str | None, typer.Option("--processes", metavar="N,N…", help="With --bitwise: in how many each; 1,2,3 if not said.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", metavar="N", min=1, help=f"With --bitwise: how many steps; {_STEPS}.")
]


def verify(
    recipe: Recipe = None,
    words: Words = None,
    files: Files = None,
    bitwise: Bitwise = False,
    processes: Counts = None,
    steps: Steps = None,
) -> Work:
    """Compare one step over micro-batch sizes and process counts with the whole batch's; exit with 1 if one differs."""
    if bitwise:
        return partial(_bitwise, join(recipe, words), files or [], _counts(processes or "1,2,3"), steps or _STEPS)
    for name, value in (("--processes", processes), ("--steps", steps)):
        if value is not None:
            raise ConfigError(f"{name} {value} belongs to --bitwise; say that as well")
    return partial(_verify, join(recipe, words), files or [])


def _counts(text: str) -> list[int]:
    words = text.split(",")
    if len(words) < 2 or not all(word.strip().isdecimal() and int(word) for word in words):
        raise ConfigError(f"--processes {text}: expected two or more numbers of processes to compare, such as 1,2,3")
    return [int(word) for word in words]


def _verify(words: list[str], files: list[Path]) -> None:
    config = load_config(words, files)
    from wholebatch.verifying.recipe import verify_recipe

    if not verify_recipe(config).ok:
        sys.exit(NOT_OK)


def _bitwise(words: list[str], files: list[Path], processes: list[int], steps: int) -> None:
    config = load_config([*words, "bitwise=true"], files)
    from wholebatch.runs import take_steps
    from wholebatch.verifying.bitwise import verify_recipe_bitwise

    if not verify_recipe_bitwise(config, take_steps, processes, steps).ok:
        sys.exit(NOT_OK)
