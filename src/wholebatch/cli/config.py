"""``wholebatch config show`` and ``config validate``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from wholebatch.cli.words import Files, Recipe, Words, Work, join, load_config


def show(recipe: Recipe = None, words: Words = None, files: Files = None) -> Work:
    """Print the whole configuration as YAML, with a line on each key; it can be given back with -c."""
    return partial(_show, join(recipe, words), files or [])


def validate(recipe: Recipe = None, words: Words = None, files: Files = None) -> Work:
    """Build all that training would use (data, model, optimizer, schedule, loss), without training."""
    return partial(_validate, join(recipe, words), files or [])


def _show(words: list[str], files: list[Path]) -> None:
    config = load_config(words, files)
    from wholebatch.config import to_yaml
    from wholebatch.config.build import check_names

    check_names(config)
    print(to_yaml(config, comments=True), end="")


def _validate(words: list[str], files: list[Path]) -> None:
    config = load_config(words, files)
    from wholebatch.config.build import build

    parts = build(config)
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    print(
        f"valid: {config.model.name} with {parameters:,} parameters on {len(parts.train_data):,} samples of "
        f"{config.data.name}, {_steps(config.epochs, parts.steps_per_epoch, parts.steps)}"
    )


def _steps(epochs: int, of_first: int, in_all: int) -> str:
    return f"{epochs} epochs of {of_first} steps" if in_all == epochs * of_first else f"{epochs} epochs, {in_all} steps"
