"""Words of the command line and what they mean: a recipe, ``key=value``, files, folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wholebatch.core.errors import ConfigError, RunFolderError
from wholebatch.core.url import Url, location

if TYPE_CHECKING:
    from wholebatch.config import Config

Work = Callable[[], None]  # what a command gives back: what is to be done

WORDS = {"ignore_unknown_options": True}  # so that --lr 3 reaches us and can be answered

Recipe = Annotated[str | None, typer.Argument(metavar="RECIPE", help="The recipe to start from; digits if none.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as batch_size=256 optimizer=adamw.")
]
Files = Annotated[
    list[Path] | None,
    typer.Option("-c", "--config", metavar="FILE", help="A YAML file of settings; may be repeated, the last one wins."),
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run.")]
Folder = Annotated[
    str | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where to write; the run's folder if not said.")
]
As_json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def run_folder(verb: str, run: str) -> Path | Url:
    """The folder that the first word after ``verb`` names.

    Raises:
        RunFolderError: it is a setting.
    """
    folder = location(run)
    if "=" in run and not folder.exists():
        raise RunFolderError(f"{verb} takes the folder of a run first, got {run!r}")
    return folder


def join(recipe: str | None, words: list[str] | None) -> list[str]:
    """All words in order; the first one may be a setting as well."""
    return [*([] if recipe is None else [recipe]), *(words or [])]


def load_config(words: Sequence[str], files: Sequence[Path]) -> Config:
    """The configuration that ``[RECIPE] key=value … -c FILE …`` say."""
    from wholebatch.config import load, recipe_names
    from wholebatch.config.schema import dotted_keys

    words = list(words)
    recipe = words.pop(0) if words and "=" not in words[0] and not words[0].startswith("-") else None
    if recipe is not None and recipe not in recipe_names():
        key = recipe.replace("-", "_")
        if key in dotted_keys():
            value = words[0] if words and "=" not in words[0] else "value"
            raise ConfigError(f"{recipe!r} is a setting, not a recipe; write {key}={value}")
    return load(recipe, files=files, overrides=settings(words))


def settings(words: Sequence[str]) -> list[str]:
    """The words that are ``key=value``; an option that does not exist is answered with how to write it.

    >>> settings(["lr=3", "epochs=1"])
    ['lr=3', 'epochs=1']
    """
    for place, word in enumerate(words):
        if re.match(r"--?[A-Za-z]", word):
            option, equals, value = word.partition("=")
            if not equals:
                after = words[place + 1] if place + 1 < len(words) else "--"
                value = "value" if after.startswith("--") or "=" in after else after
            raise ConfigError(f"there is no option {option}{_how_to_write(option, value)}")
    return list(words)


def _how_to_write(option: str, value: str) -> str:
    """The repair for ``--key value``: the key of this name, or the nearest one."""
    from wholebatch.config.schema import dotted_keys
    from wholebatch.core.errors import nearest

    key, known = option.lstrip("-").replace("-", "_"), dotted_keys()
    if key not in known:
        leaf = [name for name in known if name.rpartition(".")[2] == key]
        hint = nearest(key, known).rpartition("mean ")[2].strip("'?")
        key = leaf[0] if leaf else hint
    return f"; write {key}={value}" if key else "; settings are written key=value"
