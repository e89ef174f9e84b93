"""``wholebatch models``: what models there are, and what they cost."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer

from wholebatch.cli.words import Work, settings
from wholebatch.core.errors import ConfigError

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME …] [KEY=VALUE …]", help="Models, all of them if none; and options, such as norm=batch."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def models(words: Names = None, as_json: Json = False) -> Work:
    """List the models by name, with their numbers of parameters and of multiply-adds per image or text."""
    return partial(_models, words or [], as_json)


def _models(words: list[str], as_json: bool) -> None:
    words = settings(words)
    names = [word for word in words if "=" not in word]
    options = _options([word for word in words if "=" in word])
    from wholebatch.models import MODELS

    rows = [_row(name, options) for name in names or MODELS]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = [("name", "input", "parameters", "multiply-adds")]
    table += [(row["name"], _input(row), f"{row['parameters']:,}", f"{row['multiply_adds']:,}") for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, image, *numbers in table:
        right = "  ".join(f"{number:>{width}}" for number, width in zip(numbers, widths[2:], strict=True))
        print(f"{name:<{widths[0]}}  {image:<{widths[1]}}  {right}")
    if not names:
        print("others by name: timm:resnet50, torchvision:resnet18, package.module:function")


def _options(words: list[str]) -> dict[str, Any]:
    from wholebatch.config.source import parse_override

    options = {}
    for word in words:
        path, value = parse_override(word)
        if len(path) != 1:
            raise ConfigError(f"{word!r}: an option of a model has a name without dots, such as norm=batch")
        options[path[0]] = value
    return options


def _input(row: dict[str, Any]) -> str:
    return f"{row['tokens']} tokens" if "tokens" in row else " x ".join(map(str, row["image"]))


def _row(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A model's numbers, for an image (or a text) of the size that it is made for where nothing else is said."""
    import inspect

    import torch

    from wholebatch import models

    taken = models.options_of(name)
    defaults = inspect.signature(models.MODELS[name]).parameters if taken is not None else {}

    def size(option: str, otherwise: int) -> int:
        value = options.get(option, defaults[option].default if option in defaults else otherwise)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{option}={value}: expected a whole number, 1 or more")
        return value

    of_text = taken is not None and "vocabulary" in taken
    own = {key: value for key, value in options.items() if key != "image_size" or taken is None or key in taken}
    pixels = size("image_size", 224 if models.is_foreign(name) else 32)
    shape = (size("length", 1),) if of_text else (size("in_channels", 3), pixels, pixels)
    with torch.device("meta"):  # shapes alone: nothing is drawn and nothing computed
        model = models.build(name, **own)
    try:
        found = models.cost(model, shape, torch.int64 if of_text else None)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{name} does not take images of {shape}: {reason}; say image_size= or in_channels="
        ) from error
    what = {"tokens": shape[0]} if of_text else {"image": shape}
    return {"name": name, **what, "parameters": found.parameters, "multiply_adds": found.multiply_adds}
