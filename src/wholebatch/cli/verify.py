"""``wholebatch verify``: is the step of a recipe that of the whole batch, however it is cut?"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from wholebatch.cli.words import Files, Recipe, Words, Work, join, load_config

NOT_OK = 1


def verify(recipe: Recipe = None, words: Words = None, files: Files = None) -> Work:
    """Compare one step over micro-batch sizes and process counts with the whole batch's; exit with 1 if one differs."""
    return partial(_verify, join(recipe, words), files or [])


def _verify(words: list[str], files: list[Path]) -> None:
    config = load_config(words, files)
    from wholebatch.verifying.recipe import verify_recipe

    if not verify_recipe(config).ok:
        sys.exit(NOT_OK)
