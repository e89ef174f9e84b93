"""``wholebatch demo``: naive accumulation beside ours, on digits, in some ten seconds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from wholebatch.cli.words import Work

To = Annotated[Path, typer.Option("--to", metavar="FILE", help="Where the picture goes: .png, .svg or .pdf.")]


def demo(to: To = Path("wholebatch-demo.png")) -> Work:
    """Train digits three ways (whole batch at once, ours in micro-batches, naive accumulation) and draw them."""
    return partial(_demo, to)


def _demo(to: Path) -> None:
    from wholebatch.verifying.demo import demo as run

    run(to)
