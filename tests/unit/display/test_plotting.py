import gc
import math
import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import wholebatch as wb


def _data(figure):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in figure.axes[0].get_lines()]


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor, lambda v: torch.tensor(v, requires_grad=True)])
def test_lines_of_any_kind(kind):
    x, y, z = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]
    assert _data(wb.plot(kind(y))) == [([0, 1, 2], y)]
    assert _data(wb.plot(kind(x), kind(y))) == [(x, y)]
    assert _data(wb.plot(kind(x), [kind(y), kind(z)])) == [(x, y), (x, z)]
    assert _data(wb.plot([kind(x), kind(y)], [kind(y), kind(z)])) == [(x, y), (y, z)]
    assert _data(wb.plot([kind(y), kind(z)])) == [([0, 1, 2], y), ([0, 1, 2], z)]
    assert _data(wb.plot(kind(x), {"a": kind(y)})) == [(x, y)]


def test_an_array_of_two_dimensions_is_a_line_per_row():
    assert _data(wb.plot([0, 1], np.array([[1, 2], [3, 4], [5, 6]]))) == [
        ([0, 1], [1, 2]),
        ([0, 1], [3, 4]),
        ([0, 1], [5, 6]),
    ]
    assert _data(wb.plot([[0, 1], [2, 3]], [1, 2])) == [([0, 1], [1, 2]), ([2, 3], [1, 2])]


def test_schedules_and_functions():
    s = wb.CosineScheduler(20, 0.3, 0.01, 5)
    figure = wb.plot(np.arange(30), s)
    assert _data(figure) == [(list(range(30)), [s(t) for t in range(30)])]
    ((x, y),) = _data(wb.plot(s))
    assert (x[0], x[-1]) == (0, 21)
    assert y == [s(t) for t in x]
    assert set(range(21)) <= set(x)
    axes = wb.plot(s).axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("progress", "learning rate")
    assert wb.plot(40, [s, wb.SquareRootScheduler(0.3)]).axes[0].get_lines()[1].get_xdata()[-1] == 40
    assert wb.plot(wb.SquareRootScheduler(0.3)).axes[0].get_lines()[0].get_xdata()[-1] == 100
    assert _data(wb.plot([1.0, 4.0], math.sqrt)) == [([1, 4], [1, 2])]
    assert [line.get_label() for line in wb.plot({"a": s, "b": s}).axes[0].get_lines()] == ["a", "b"]


def test_titles_units_limits_and_scales(tmp_path):
    figure = wb.plot(
        [1, 10], [[1, 2], [3, 4]], "time (s)", "voltage (V)", ["a", "b"], (1, 20), [0, 9], "log", "linear",
        title="A title", path=tmp_path / "a.png",
    )  # fmt: skip
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("time (s)", "voltage (V)", "A title")
    assert (axes.get_xlim(), axes.get_ylim()) == ((1, 20), (0, 9))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_formats_come_round_and_any_number_of_lines_has_its_look():
    figure = wb.plot([[1, 2]] * 3, fmts=["r-", "b--"])
    assert [line.get_color() for line in figure.axes[0].get_lines()] == ["r", "b", "r"]
    lines = wb.plot([list(range(20))] * 60).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 60


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_legend_covers_no_line(count):
    figure = wb.plot([list(range(10))] * count, legend=[f"line {i}" for i in range(count)])
    from wholebatch.display.chart_figure import figure_bytes

    figure_bytes(figure, "png")
    (axes,) = figure.axes
    box, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    assert legend.y0 >= box.y1 - 1 or legend.x0 >= box.x1 - 1
    assert figure.bbox.x1 + 1 >= legend.x1
    assert box.width > 150


def test_what_is_not_finite_is_a_gap_and_a_lone_point_is_seen():
    figure = wb.plot(list(range(20)), [1.0, None, 2.0, math.inf, *[3.0] * 16])
    (line,) = figure.axes[0].get_lines()
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False, True] + [False] * 16
    assert line.get_marker() == "o"
    assert line.get_markevery() == [0, 2]


def test_on_axes_that_are_given():
    figure = Figure()
    axes = figure.subplots()
    assert wb.plot([1, 2], axes=axes) is figure
    assert wb.plot([3, 4], axes=axes) is figure
    assert _data(figure) == [([0, 1], [3, 4])]


def test_no_figure_is_kept_and_no_display_needed():
    kept = weakref.ref(wb.plot([1, 2]))
    gc.collect()
    assert kept() is None
    code = (
        "import sys, wholebatch as wb\n"
        "wb.plot([1, 2]).savefig('/dev/null', format='png')\n"
        "print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.stdout, done.stderr) == ("False False\n", "")


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([1, 2, 3], [1, 2]), {}, "line 1 has 3 places in X and 2 values in Y"),
        (([[1], [2]], [[1], [2], [3]]), {}, "X has 2 lines and Y has 3"),
        (([1, 2],), {"legend": ["a", "b"]}, "legend has 2 names for 1 lines"),
        (("abc",), {}, "got str 'abc'"),
        ((3,), {}, "single number 3.0"),
        ((np.zeros((2, 2, 2)),), {}, r"shape \(2, 2, 2\)"),
        ((len,), {}, "must take a number"),
        ((len, [1, 2]), {}, "X is a function"),
        (([1, 2],), {"yscale": "logarithmic"}, "expected 'linear' or 'log'"),
        (([1, 2],), {"xlim": (2, 1)}, "the first must be below"),
        (([1, 2],), {"path": "a.pgn"}, "did you mean 'png'"),
    ],
)
def test_mistakes(arguments, options, words):
    with pytest.raises((wb.InputError, wb.InputTypeError), match=words):
        wb.plot(*arguments, **options)


@pytest.mark.parametrize("scales", [{"yscale": "log"}, {"xscale": "log"}, {"xscale": "log", "yscale": "log"}])
def test_a_logarithmic_axis_without_anything_above_0_is_empty_and_warns_of_nothing(scales):
    figure = wb.plot([-1, -2, -3], [[-1, -2, -3], [0, 0, 0]], "x", "y", ["a", "b"], **scales)
    figure.canvas.draw()
    assert not any(line.get_xdata().size for line in figure.axes[0].get_lines())
    few = wb.plot([1, 2, 3], [[-1, -2, -3], [0, 10, 20]], **scales)
    assert [line.get_xdata().size for line in few.axes[0].get_lines()] == ([0, 3] if "yscale" in scales else [3, 3])
