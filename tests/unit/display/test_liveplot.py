import io
import math
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
import torch

import wholebatch as wb
from wholebatch.core.record import History, Progress, RunShape
from wholebatch.display import sinks
from wholebatch.display.live import Live
from wholebatch.display.output import Output

_SGR = re.compile(r"\x1b\[[\d;]*m")


class Clock:
    """Time that only tests move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def drawn(monkeypatch):
    """Counts the pictures that are written, and how many points each line of them has."""
    counts = []

    def draw(self, chart):
        counts.append([len(line.x) for panel in chart.panels for line in panel.lines])

    monkeypatch.setattr(sinks.FileSink, "draw", draw)
    return counts


def _lines(plot):
    return {line.label: (line.x.tolist(), line.y.tolist()) for panel in plot.chart().panels for line in panel.lines}


# feeding ----------------------------------------------------------------------------------------


def test_values_come_in_many_forms():
    plot = wb.LivePlot(legend=["a", "b"])
    plot.add(1, 1.0, 2.0)
    plot.add(2, (1.5, None))
    plot.add(3, torch.tensor([1.0, 2.0]))
    plot.add(torch.tensor(4), [torch.tensor(1.0, requires_grad=True), np.float32(3)])
    plot.add(5, {"b": 7})
    plot.add(6, a=9, c=1)
    plot.add(7, None, math.nan)
    assert plot.points("a") == ([1, 2, 3, 4, 6], [1, 1.5, 1, 1, 9])
    x, y = plot.points("b")
    assert x == [1, 3, 4, 5, 7]
    assert y[:4] == [2, 2, 3, 7]
    assert math.isnan(y[4])
    assert plot.points("c") == ([6], [1])


def test_without_a_legend_lines_are_numbered():
    plot = wb.LivePlot()
    plot.add(0, 5.0)
    assert _lines(plot) == {"": ([0], [5])}
    plot.add(1, 5, 6)
    assert _lines(plot) == {"line 1": ([0, 1], [5, 5]), "line 2": ([1], [6])}


@pytest.mark.parametrize(
    ("values", "words"),
    [((1.0,), "1 values for the 2 lines"), ((1.0, 2.0, 3.0), "3 values for the 2"), (("x", 1), "needs a number"),
     ((torch.ones(3), 1.0), "needs a number, got Tensor")],
)  # fmt: skip
def test_wrong_values_are_refused_and_nothing_is_kept(values, words):
    plot = wb.LivePlot(legend=["a", "b"])
    with pytest.raises((wb.InputError, wb.InputTypeError), match=words):
        plot.add(1, *values)
    assert plot.points("a") == plot.points("b") == ([], [])


def test_wrong_arguments():
    for options in [{"path": "a.txt"}, {"path": "a"}, {"yscale": "logg"}, {"xlim": (2, 1)}]:
        with pytest.raises(wb.InputError):
            wb.LivePlot(**options)
    with pytest.raises(wb.InputError, match="did you mean 'train'"):
        wb.LivePlot(legend="train").points("tran")


# how often it draws -------------------------------------------------------------------------------


def test_pictures_are_written_every_few_seconds_and_at_the_end(drawn, tmp_path):
    clock = Clock()
    with wb.LivePlot(path=tmp_path / "a.png", every=5.0, clock=clock) as plot:
        for number in range(120):
            clock.now = number / 10
            plot.add(number, 1.0)
    assert drawn == [[51], [101], [120]]
    plot.close()
    assert len(drawn) == 3


def test_drawing_takes_a_twentieth_of_the_time(monkeypatch, tmp_path):
    clock, times = Clock(), []

    def draw(self, chart):
        times.append(clock.now)
        clock.now += 2.0

    monkeypatch.setattr(sinks.FileSink, "draw", draw)
    plot = wb.LivePlot(path=tmp_path / "a.png", every=5.0, clock=clock)
    for number in range(1000):
        clock.now += 0.1
        plot.add(number, 1.0)
    assert times == pytest.approx([5.1, 47.1, 89.1], abs=0.2)
    plot.close()


def test_an_end_without_anything_new_draws_nothing(drawn, tmp_path):
    plot = wb.LivePlot(path=tmp_path / "a.png")
    plot.add(0, 1.0)
    plot.flush()
    plot.flush()
    plot.close()
    assert drawn == [[1]]


def test_a_million_points_take_linear_time_and_bounded_drawing(tmp_path):
    def seconds(count):
        plot = wb.LivePlot("step", "loss", path=tmp_path / "a.png", every=0.05)
        began = time.thread_time()
        for number in range(count):
            plot.add(number, 0.5)
        plot.close()
        took = time.thread_time() - began
        assert len(plot.points("line 1")[0]) == count
        return took

    seconds(1_000)  # matplotlib is imported
    small, large = seconds(100_000), seconds(1_000_000)
    assert large < 20 * small + 1
    plot = wb.LivePlot(legend="a")
    tracemalloc.start()
    for number in range(20_000):
        plot.add(float(number), 0.5)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 20 * 20_000 + 10_000  # bytes: two doubles a point, and what arrays keep free


def test_what_matplotlib_gets_is_bounded(tmp_path):
    from wholebatch.display.chart_figure import figure_of

    plot = wb.LivePlot(legend="a")
    for number in range(200_000):
        plot.add(float(number), math.sin(number))
    (line,) = figure_of(plot.chart()).axes[0].get_lines()
    assert len(line.get_xdata()) <= 4 * 1280 + 8
    assert max(line.get_ydata()) == max(plot.points("a")[1])


def test_from_threads(tmp_path):
    path = tmp_path / "a.png"
    plot = wb.LivePlot(legend=["a", "b", "c"], path=path, every=0.05)

    def work(name):
        for number in range(5_000):
            plot.add(number, **{name: number})

    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    plot.close()
    assert all(plot.points(name) == (list(range(5_000)),) * 2 for name in "abc")
    assert path.read_bytes().startswith(b"\x89PNG")


# where it draws -----------------------------------------------------------------------------------


def test_a_script_without_a_path_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with wb.LivePlot() as plot:
        plot.add(1, 2.0)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_picture_is_of_the_kind_of_its_name(tmp_path, kind):
    path = tmp_path / "new" / f"a.{kind}"
    with wb.LivePlot("step", "loss", ["a"], path=path) as plot:
        plot.add(1, 2.0)
        plot.add(2, 1.0)
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_terminal_gets_a_chart_that_stays(terminal):
    term = terminal(80, 24)
    with wb.LivePlot("step", "loss", ["train"], stream=term.stream) as plot:
        for number in range(50):
            plot.add(number, 50.0 - number)
    text = _SGR.sub("", term.read())
    screen = type(term.screen())(text, 80)
    assert screen.lines[0] == "loss"
    assert screen.lines[1] == "a: train 1"
    assert screen.lines[-1].split()[-1] == "step"
    assert 15 <= len(screen.lines) <= 22
    assert any("⢄" in line or "⠑" in line for line in screen.lines)
    assert screen.cursor
    assert not screen.wrapped
    assert "\x1b[38" in term.read() or "\x1b[9" in term.read()


def test_no_color_and_no_braille(terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    term = terminal(80, 24, encoding="ascii")
    with wb.LivePlot("step", "loss", ["train"], stream=term.stream) as plot:
        plot.add(0, 1.0)
        plot.add(9, 0.0)
    assert not _SGR.search(term.read())
    assert term.read().isascii()
    assert "**" in term.read()


@pytest.mark.parametrize("name", ["TERM", "CI"])
def test_a_dumb_terminal_and_ci_get_nothing(terminal, monkeypatch, name):
    monkeypatch.setenv(name, "dumb" if name == "TERM" else "true")
    term = terminal()
    with wb.LivePlot(stream=term.stream) as plot:
        plot.add(0, 1.0)
    assert term.read() == ""


def test_show_false_shows_nothing(terminal):
    term = terminal()
    with wb.LivePlot(stream=term.stream, show=False) as plot:
        plot.add(0, 1.0)
    assert term.read() == ""


# what goes wrong ----------------------------------------------------------------------------------


def test_an_unwritable_picture_is_said_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    clock = Clock()
    with wb.LivePlot(path=tmp_path / "file" / "a.png", every=1.0, clock=clock) as plot:
        for number in range(50):
            clock.now += 1.0
            plot.add(number, 1.0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a.png cannot be drawn, everything else goes on" in said


def test_a_picture_that_can_be_written_again_is(tmp_path):
    folder, clock = tmp_path / "a", Clock()
    folder.write_text("")
    plot = wb.LivePlot(path=folder / "a.png", every=1.0, clock=clock)
    plot.add(0, 1.0)
    clock.now = 2.0
    plot.add(1, 1.0)
    folder.unlink()
    plot.close()
    assert (folder / "a.png").exists()


def test_a_closed_terminal_stops_nothing(terminal, capsys):
    term, clock = terminal(), Clock()
    plot = wb.LivePlot(stream=term.stream, clock=clock)
    plot.add(0, 1.0)
    term.read()  # closes it
    for number in range(1, 20):
        clock.now += 1.0
        plot.add(number, 1.0)
    plot.close()
    assert len(plot.points("line 1")[0]) == 20
    assert capsys.readouterr().err.count("\n") <= 1


def test_a_broken_matplotlib_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wholebatch.display.chart_figure", None)
    with wb.LivePlot(path=tmp_path / "a.png") as plot:
        plot.add(0, 1.0)
    assert "cannot be drawn" in capsys.readouterr().err


def test_after_the_end_points_are_kept_and_nothing_is_drawn(drawn, tmp_path):
    clock = Clock()
    plot = wb.LivePlot(path=tmp_path / "a.png", clock=clock)
    plot.add(0, 1.0)
    plot.close()
    clock.now = 100.0
    plot.add(1, 2.0)
    plot.flush()
    assert plot.points("line 1") == ([0, 1], [1, 2])
    assert drawn == [[1]]


def test_the_last_picture_is_written_when_the_interpreter_exits(tmp_path):
    code = "import wholebatch as wb\nplot = wb.LivePlot(path='a.svg')\nplot.add(1, 2.0)\n"
    environment = {**os.environ, "DISPLAY": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


# a run that is observed -----------------------------------------------------------------------------


def test_a_run_has_a_panel_per_value(fake_run):
    run = fake_run()
    plot = wb.LivePlot(show=False, values=("loss", "accuracy", "lr", "grad_norm"))
    run.drive(plot)
    chart = plot.chart()
    assert (chart.xlabel, chart.title) == ("epoch", "digits")
    assert [panel.ylabel for panel in chart.panels] == ["loss", "accuracy (%)", "lr"]
    lines = _lines(plot)
    assert list(lines) == ["train loss", "test loss", "train accuracy", "test accuracy", "train lr"]
    assert lines["train loss"] == ([1, 2, 3], [1 / 4, 1 / 8, 1 / 12])
    assert lines["test accuracy"] == ([1, 2, 3], [95, 95, 95])


def test_records_of_steps_are_a_line_of_their_own():
    plot = wb.LivePlot(show=False)
    plot.start(RunShape(2, 4, 100, 25, "cpu"))
    plot.record({"kind": "step", "split": "train", "step": 2, "epoch": 1, "loss": 3.0})
    assert _lines(plot) == {"train loss of steps": ([0.5], [3.0])}


def test_an_unknown_length_is_drawn_by_step():
    plot = wb.LivePlot(show=False)
    plot.start(RunShape(2, None, None, 25, "cpu"))
    plot.record({"kind": "epoch", "split": "test", "step": 7, "epoch": 1, "loss": 3.0})
    assert plot.chart().xlabel == "step"
    assert _lines(plot) == {"test loss": ([7], [3.0])}


def test_running_values_are_read_when_something_is_drawn(drawn, tmp_path):
    clock, reads = Clock(), []
    plot = wb.LivePlot(show=False, path=tmp_path / "a.png", every=1.0, clock=clock)
    plot.start(RunShape(1, 100, 100, 1, "cpu"))

    def read():
        reads.append(clock.now)
        return {"loss": 0.5, "accuracy": 0.25}

    for step in range(1, 101):
        clock.now += 0.1
        plot.step(Progress(1, step, step, step, read))
    assert len(reads) == len(drawn) <= 10
    assert drawn[0] == [1, 1]
    assert _lines(plot)["train accuracy"] == ([1.0], [25.0])
    plot.record({"kind": "epoch", "split": "train", "step": 100, "epoch": 1, "loss": 0.4, "accuracy": 0.3})
    assert _lines(plot)["train loss"] == ([1.0], [0.4])
    plot.end(History(), None)


def test_a_run_that_goes_on_shows_what_was_before(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"kind": "epoch", "split": "train", "step": 4, "epoch": 1, "loss": 2.0}\n')
    plot = wb.LivePlot(show=False)
    plot.start(RunShape(2, 4, 100, 25, "cpu", run_dir=tmp_path))
    plot.record({"kind": "epoch", "split": "train", "step": 8, "epoch": 2, "loss": 1.0})
    assert _lines(plot)["train loss"] == ([1, 2], [2, 1])
    plot.end(History(), None)
    assert (tmp_path / "live.png").exists()


def test_one_plot_for_two_runs(fake_run, drawn, tmp_path):
    plot = wb.LivePlot(show=False, path=tmp_path / "a.png")
    fake_run().drive(plot)
    fake_run(epochs=2).drive(plot)
    assert [len(x) for x, _ in _lines(plot).values()] == [2, 2, 2, 2]
    assert drawn == [[3, 3, 3, 3], [2, 2, 2, 2]]


def test_a_chart_below_the_progress(fake_run, terminal):
    term, run = terminal(90, 40), fake_run(epochs=5)
    live, plot = Live(term.stream, clock=run.clock), wb.LivePlot(clock=run.clock, stream=term.stream)
    plot.join(live, None)
    run.drive(plot, live)
    text = _SGR.sub("", term.read())
    screen = type(term.screen())(text, 90)
    assert [line.split("  ")[0] for line in screen.lines[:5]] == [f"{n}/5" for n in range(1, 6)]
    assert screen.lines[5:8] == ["digits", "loss", "a: train loss 0.05   b: test loss 0.055"]
    assert "accuracy (%)" in screen.lines
    assert screen.lines[-1].split() == ["1", "2", "3", "4", "epoch"]
    assert screen.cursor
    assert text.count("a: train loss") > 10  # while it ran, too


def test_a_chart_that_fails_leaves_the_progress(fake_run, terminal, monkeypatch, capsys):
    term, run = terminal(), fake_run()
    live, plot = Live(term.stream, clock=run.clock), wb.LivePlot(clock=run.clock)
    monkeypatch.setattr(plot, "chart", lambda: 1 / 0)
    plot.join(live, None)
    run.drive(plot, live)
    assert "batches" in term.read()
    assert "plain lines follow" not in term.read()
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1


def test_rows_never_raise():
    assert wb.LivePlot().rows(80, 20, Output(io.StringIO())) == []
