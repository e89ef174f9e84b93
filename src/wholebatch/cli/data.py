"""``wholebatch data show`` and ``data check``: look at data before training on them."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wholebatch.cli.words import Work, settings
from wholebatch.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from wholebatch.config import Config
    from wholebatch.data.doubles import Findings

_SHOWN = 24  # samples of a sheet
_AT_MOST = 20  # lines of each kind that a table has
_SIZE = 128  # pixels that photographs of different sizes become on a sheet, where nothing is said
_FOUND = 1  # the exit code where something was found

Words = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as data.size=64.")]


def show(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A recipe, a data set, or a folder, list or file.")],
    words: Words = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The picture to write.")] = Path(
        "sheet.png"
    ),
    count: Annotated[int, typer.Option("--count", metavar="N", min=1, max=400, help="How many samples.")] = _SHOWN,
) -> Work:
    """Draw a sheet of labelled training samples, as the model will see them: after augmentation."""
    return partial(_show, name, words or [], output, count)


def check(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A folder with a folder per class, or a list.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with everything found.")] = False,
) -> Work:
    """Find files that cannot be read, the same picture twice, and the same picture in two classes.

    The exit code is 0 where nothing was found and 1 where something was.
    """
    return partial(_check, path, as_json)


def _show(name: str, words: list[str], output: Path, count: int) -> None:
    if output.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"-o {str(output)!r}: expected a file that ends with .png, .svg or .pdf")
    config = _config(name, settings(words))
    from wholebatch.config.build import check_names, look
    from wholebatch.display.sheet import sheet

    check_names(config)
    images, labels, data = look(config, count)
    title = f"{name}: {len(images)} of {len(data):,} training samples, {len(set(data.classes))} classes"
    try:
        sheet(images, labels, output, title=title)
    except OSError as error:
        raise ConfigError(f"-o {str(output)!r} cannot be written: {error.strerror or error}") from error
    print(f"{output}: {len(images)} of {len(data):,} training samples of {name}")
    skipped = getattr(data, "skipped", ())
    if skipped:
        print(f"{len(skipped)} images cannot be read and were left out")


def _config(name: str, overrides: list[str]) -> Config:
    """The configuration of a recipe of this name, or of the data set or the path."""
    from wholebatch.config import load, recipe_names
    from wholebatch.config.show import inline

    if name in recipe_names():
        return load(name, overrides=overrides)
    from wholebatch.data import registry

    if name in registry.READERS or (":" in name and not Path(name).exists()):
        return load(overrides=[f"data.name={inline(name)}", *overrides])
    kind = registry.guess(name)
    own = [f"data.name={kind}", f"data.root={inline(name)}"]
    if not any(word.startswith("data.size=") for word in overrides):
        own.append(f"data.size={_SIZE}")
    return load(overrides=[*own, *overrides])


def _check(path: Path, as_json: bool) -> None:
    from wholebatch.data import doubles, image_folder, image_list, registry

    kind = registry.guess(path)
    if kind == "hf":
        raise DataError(f"data check looks at folders and lists of image files, and {str(path)!r} holds parquet files")
    found = doubles.find(image_folder(path) if kind == "folder" else image_list(path))
    print(json.dumps(_as_json(found), ensure_ascii=True, indent=2) if as_json else _table(found))
    if not found.clean:
        sys.stdout.flush()
        sys.exit(_FOUND)


def _as_json(found: Findings) -> dict[str, Any]:
    return {
        "images": found.images,
        "classes": found.classes,
        "unreadable": [{"file": file, "reason": reason} for file, reason in found.unreadable],
        "duplicates": found.duplicates,
        "mislabelled": found.mislabelled,
    }


def _table(found: Findings) -> str:
    """Counts, and the files behind them, a group on each line."""
    files = sum(map(len, found.duplicates)), sum(map(len, found.mislabelled))
    lines = [
        f"images       {found.images:>8,}  in {len(found.classes)} classes",
        f"unreadable   {len(found.unreadable):>8,}",
        f"duplicates   {files[0]:>8,}  files that show {len(found.duplicates):,} pictures, each in one class",
        f"mislabelled  {files[1]:>8,}  files that show {len(found.mislabelled):,} pictures, each in several classes",
    ]
    lines += _lines("unreadable", [reason for _, reason in found.unreadable])
    lines += _lines("duplicates", [" = ".join(group) for group in found.duplicates])
    lines += _lines("mislabelled", [" = ".join(group) for group in found.mislabelled])
    return "\n".join(lines)


def _lines(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = [f"  … and {len(items) - _AT_MOST:,} more; --json has all"] if len(items) > _AT_MOST else []
    return ["", f"{title}:", *(f"  {item}" for item in items[:_AT_MOST]), *more]
