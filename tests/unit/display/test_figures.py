import math
import subprocess
import sys

import matplotlib
import pytest
from matplotlib.figure import Figure

from wholebatch.core.record import History
from wholebatch.display.figures import curves, picture


def _lines(figure):
    return {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}


def _shown(figure):
    legend = figure.axes[0].get_legend()
    return [text.get_text() for text in legend.get_texts()] if legend else []


def test_every_curve_is_there(fine_history):
    history = fine_history()
    figure = curves(history, title="digits")
    assert _shown(figure) == ["train loss", "train accuracy", "test accuracy"]
    lines = _lines(figure)
    assert list(lines["train loss"].get_xdata()) == [1, 2, 3, 4]
    assert list(lines["train loss"].get_ydata()) == [2 / 5, 2 / 10, 2 / 15, 2 / 20]
    assert list(lines["test accuracy"].get_ydata()) == pytest.approx([50, 75, 100 - 50 / 3, 87.5])
    assert len(lines["_steps"].get_xdata()) == 20
    upper, strip, right = figure.axes
    assert [upper.get_title("left"), upper.get_title("right")] == ["digits", "test accuracy 87.50 %"]
    assert [upper.get_ylabel(), right.get_ylabel()] == ["loss", "accuracy (%)"]
    assert [strip.get_ylabel(), strip.get_xlabel()] == ["learning\nrate", "epoch"]
    (rate,) = strip.get_lines()
    assert list(rate.get_ydata()) == [0.1 / step for step in range(1, 21)]
    assert upper.get_shared_x_axes().joined(upper, strip)


def test_curves_differ_in_more_than_colour(fine_history):
    lines = [
        line for label, line in _lines(curves(fine_history())).items() if "accuracy" in label or label == "train loss"
    ]
    assert len({line.get_color() for line in lines}) == 3
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3


@pytest.mark.parametrize("epochs", [1, 300])
@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("accuracy", [False, True])
@pytest.mark.parametrize("lr", [False, True])
def test_any_history_is_drawn(fine_history, epochs, fine, accuracy, lr):
    history = fine_history(epochs=epochs, steps=2, fine=fine, accuracy=accuracy, lr=lr)
    figure = curves(history)
    assert _shown(figure) == ["train loss", *(["train accuracy", "test accuracy"] if accuracy else ["test loss"])]
    assert len(figure.axes) == 1 + lr + accuracy
    low, high = figure.axes[0].get_ylim()
    lines = list(figure.axes[0].get_lines())
    assert all(low <= y <= high for line in lines for y in line.get_ydata())


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_gaps_and_nothing_at_all(fine_history, value):
    history = fine_history(fine=False)
    for record in history.records[2:4]:
        record.update({key: value for key in ("loss", "accuracy", "lr") if key in record})
    assert picture(curves(history), "png")
    for record in history.records:
        record.update({key: value for key in ("loss", "accuracy", "lr") if key in record})
    assert picture(curves(history), "png")
    assert _shown(curves(history)) == []
    assert "no records yet" in [text.get_text() for text in curves(History()).axes[0].texts]


def test_only_steps_so_far(fine_history):
    history = History(fine_history().select(kind="step"))
    figure = curves(history)
    assert _shown(figure) == ["train loss"]
    assert figure.axes[1].get_xlabel() == "step"


def test_a_loss_over_many_decades_gets_a_log_scale(fine_history):
    history = fine_history(epochs=3, steps=2)
    assert curves(history).axes[0].get_yscale() == "linear"
    history.records[0]["loss"] = 1e4
    assert curves(history).axes[0].get_ylabel() == "loss (log scale)"
    history.records[1]["loss"] = -1.0
    assert curves(history).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_same_history_gives_the_same_bytes(fine_history, tmp_path, kind):
    first = picture(curves(fine_history(), title="a $_$ b^ and 数"), kind)
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": "x", "axes.facecolor": "red"}):
        curves(fine_history(), tmp_path / f"c.{kind}", title="a $_$ b^ and 数")
    assert (tmp_path / f"c.{kind}").read_bytes() == first
    assert len(first) > 5000


def test_no_setting_changes_and_no_pyplot():
    code = (
        "import sys, matplotlib\n"
        "from wholebatch.core.record import History\n"
        "from wholebatch.display.figures import curves, picture\n"
        "look = lambda: {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != 'backend'}\n"
        "before = look()\n"  # reading "backend" imports pyplot
        "picture(curves(History()), 'png')\n"
        "print(look() == before, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True False\n"


def test_a_given_figure_is_drawn_on(fine_history):
    figure = Figure()
    assert curves(fine_history(), figure) is figure
    assert curves(fine_history(), figure) is figure
    assert len(figure.axes) == 3


def test_a_long_title_leaves_room_for_the_result(fine_history):
    title = curves(fine_history(), title="x" * 90).axes[0].get_title("left")
    assert len(title) == 50
