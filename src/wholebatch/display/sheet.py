"""A sheet of labelled samples."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wholebatch.display.writing import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST = 22  # characters of a label that stand above a picture


def sheet(
    images: Sequence[Any], labels: Sequence[str], target: str | os.PathLike[str] | None = None, *, title: str = ""
) -> Figure:
    """Draw pictures in rows, each with its label above it; return the figure.

    Args:
        images: C×H×W arrays of numbers from 0 to 1, of any sizes; one channel is drawn as grey levels.
        labels: one per picture.
        target: a file to write (``.png``, ``.svg``, ``.pdf``), or none.
        title: the headline.

    Raises:
        OSError: the file cannot be written.
        ValueError: matplotlib does not know the file's ending, or there are no pictures.
    """
    from matplotlib.figure import Figure

    if not images:
        raise ValueError("a sheet needs at least one picture")
    columns = min(len(images), max(4, math.ceil(math.sqrt(len(images) * 1.5))))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.35 * columns, 1.55 * rows + 0.5), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in axes:
        place.set_axis_off()
    for place, image, label in zip(axes, images, labels, strict=False):
        pixels = np.clip(np.asarray(image, dtype=np.float64), 0, 1)
        grey = pixels.shape[0] == 1
        shown = pixels[0] if grey else np.moveaxis(pixels[:3], 0, 2)
        place.imshow(shown, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")
        place.set_title(_plain(label), fontsize=8, color="#333333", pad=3)
    if title:
        figure.suptitle(_plain(title, 90), fontsize=10, color="#333333")
    if target is not None:
        _write(figure, target)
    return figure


def _plain(text: str, longest: int = _LONGEST) -> str:
    """``text`` short enough, and without what matplotlib would read as a formula."""
    text = " ".join(text.split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _write(figure: Figure, target: str | os.PathLike[str]) -> None:
    kind = os.path.splitext(os.fspath(target))[1].lstrip(".").lower() or "png"
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    write_bytes(target, buffer.getvalue())
