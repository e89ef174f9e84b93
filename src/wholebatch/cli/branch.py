"""``wholebatch branch``: which batch size still pays, measured from a checkpoint of a run."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wholebatch.cli.words import Work, settings
from wholebatch.core.errors import ConfigError, InputError, nearest
from wholebatch.core.url import location

_RULES = ("linear", "sqrt", "none")


def branch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder of a run; it stays as it is.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change.")] = None,
    batch_size: Annotated[
        str, typer.Option("--batch-size", metavar="N,N…", help="Batch sizes to try, such as 512,1024,2048.")
    ] = "",
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Steps of the largest batch; the others draw as many samples.")
    ] = 20,
    lr_rule: Annotated[
        str, typer.Option("--lr-rule", metavar="RULE", help="How the rate follows: linear, sqrt or none.")
    ] = "sqrt",
    lr: Annotated[
        float | None, typer.Option("--lr", metavar="RATE", help="The rate at the run's batch size; else its own.")
    ] = None,
    checkpoint: Annotated[
        int | None, typer.Option("--checkpoint", metavar="STEP", help="The checkpoint to begin from; else the newest.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="The picture; numbers go beside it, as .json."),
    ] = None,
) -> Work:
    """Continue a run at several batch sizes for a while: loss against samples drawn."""
    if re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", batch_size) is None:
        raise ConfigError(f"--batch-size {batch_size!r}: expected whole numbers with commas, such as 512,1024,2048")
    if lr_rule not in _RULES:
        raise ConfigError(f"--lr-rule {lr_rule}: expected linear, sqrt or none{nearest(lr_rule, _RULES)}")
    if lr is not None and not 0 < lr < float("inf"):
        raise ConfigError(f"--lr {lr:g}: expected a number above 0")
    sizes = [int(size) for size in batch_size.split(",")]
    return partial(_branch, run, settings(words or []), sizes, steps, lr_rule, lr, checkpoint, output)


def _branch(
    run: str,
    words: list[str],
    sizes: list[int],
    steps: int,
    lr_rule: str,
    lr: float | None,
    checkpoint: int | None,
    output: Path | None,
) -> None:
    import json

    from wholebatch import branches
    from wholebatch.display.chart_figure import figure_bytes, figure_of
    from wholebatch.display.liveplot import picture_path
    from wholebatch.display.writing import write_bytes

    folder = location(run)
    picture = output or Path(f"branch-{folder.name}.png")
    picture_path(picture)
    found = branches.branch(folder, sizes, steps, lr_rule=lr_rule, lr=lr, checkpoint=checkpoint, overrides=words)
    for line in found.lines():
        print(line)
    numbers = picture.with_suffix(".json")
    try:
        write_bytes(picture, figure_bytes(figure_of(found.chart()), picture.suffix[1:].lower()))
        write_bytes(numbers, (json.dumps(found.as_dict(), indent=1) + "\n").encode())
    except OSError as error:
        raise InputError(f"{str(output)!r} cannot be written: {error.strerror or error}; choose another -o") from error
    print(f"wrote {picture} and {numbers}")
