"""The picture of the demonstration: losses at the left, errors of the gradient at the right."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholebatch.core.errors import InputError
from wholebatch.display import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from wholebatch.verifying.demo import Curve

# Okabe and Ito's colours, which people with any colour vision can tell apart; widths and dashes differ as well.
_LOOKS: list[dict[str, Any]] = [
    {"color": "#BBBBBB", "linewidth": 6.0, "linestyle": "-"},
    {"color": "#0072B2", "linewidth": 1.8, "linestyle": "-"},
    {"color": "#D55E00", "linewidth": 1.8, "linestyle": "--"},
]
_RC = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
    "svg.hashsalt": "wholebatch",
}


def draw(curves: list[Curve], path: Path) -> None:
    """Write the picture of the curves to ``path`` (png, svg or pdf); the same curves give the same bytes.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        style.use(["default", _RC])
        figure = Figure(figsize=(10.0, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        losses, errors = figure.subplots(1, 2)
        _losses(losses, curves)
        _errors(errors, curves)
        handles, labels = losses.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=2.8)
        buffer = io.BytesIO()
        kind = path.suffix.lstrip(".")
        undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=kind, dpi=140, facecolor="white", metadata=undated.get(kind))
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"the picture {str(path)!r} cannot be written: {error.strerror or error}") from error


def _losses(axes: Axes, curves: list[Curve]) -> None:
    for curve, look in zip(curves, _LOOKS, strict=True):
        axes.plot(range(1, len(curve.loss) + 1), curve.loss, label=curve.name, **look)
    axes.set_title("Digits, one in ten with a label", loc="left", fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("training loss (cross-entropy, nats)")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)


def _errors(axes: Axes, curves: list[Curve]) -> None:
    for curve, look in list(zip(curves, _LOOKS, strict=True))[1:]:
        axes.plot(range(1, len(curve.error) + 1), [max(error, 1e-17) for error in curve.error], **look)
    axes.set_yscale("log")
    axes.set_ylim(1e-17, 10)
    axes.set_title("Error of each step's gradient", loc="left", fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("relative to the gradient's norm (log scale)")
    axes.margins(x=0.01)
