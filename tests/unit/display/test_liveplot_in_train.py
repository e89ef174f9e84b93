"""A live plot given to ``wb.train``."""

import re
import sys
import time

import pytest
import torch

import wholebatch as wb
from wholebatch.checkpoint import Fence
from wholebatch.core.record import Observer, Progress, RunShape
from wholebatch.display import RunFolder

_SGR = re.compile(r"\x1b\[[\d;]*m")


def _train(plot, epochs=2, **options):
    torch.manual_seed(0)
    data = torch.randn(40, 3), torch.randint(0, 2, (40,))
    return wb.train(
        torch.nn.Linear(3, 2), data, eval_data=data, loss=torch.nn.CrossEntropyLoss(), optimizer=torch.optim.SGD,
        batch_size=8, epochs=epochs, observers=[plot], **options,
    )  # fmt: skip


def test_a_run_folder_gets_a_picture(tmp_path):
    _train(wb.LivePlot(), epochs=1, run_dir=tmp_path / "run", display=False)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"checkpoints", "curves.png", "curves.svg", "history.jsonl", "live.png"}


def test_a_path_goes_before_the_run_folder(tmp_path):
    _train(wb.LivePlot(path=tmp_path / "a.svg"), epochs=1, run_dir=tmp_path / "run", display=False)
    assert (tmp_path / "a.svg").exists()
    assert not (tmp_path / "run" / "live.png").exists()


def test_without_either_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _train(wb.LivePlot(), display=False)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_run_that_goes_on_is_drawn_whole(tmp_path):
    _train(wb.LivePlot(), epochs=1, run_dir=tmp_path / "run", display=False)
    plot = wb.LivePlot()
    _train(plot, run_dir=tmp_path / "run", resume=True, display=False)
    assert plot.chart().panels[0].lines[0].x.tolist() == [1, 2]


def test_a_run_that_was_overtaken_writes_no_picture(tmp_path, capsys):
    folder, plot = RunFolder(tmp_path / "run"), wb.LivePlot(show=False)
    plot.join(Observer(), folder)
    folder.prepare()
    plot.start(RunShape(1, 1, 1, 1, "cpu", run_dir=tmp_path / "run"))
    plot.record({"kind": "epoch", "split": "train", "step": 1, "epoch": 1, "loss": 1.0})
    with Fence.take(tmp_path / "run"):
        plot.close()
    assert not (tmp_path / "run" / "live.png").exists()
    assert "cannot be drawn" in capsys.readouterr().err
    folder.fence.close()


def test_a_terminal_shows_progress_and_chart(terminal, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    term = terminal(90, 40)
    monkeypatch.setattr(sys, "stdout", term.stream)
    _train(wb.LivePlot())
    monkeypatch.undo()
    screen = type(term.screen())(_SGR.sub("", term.read()), 90)
    assert screen.lines[0].lstrip("epoch ").startswith("1/2  loss")
    assert screen.lines[2] == "loss"
    assert screen.lines[3].startswith("a: train loss 0.")
    assert screen.cursor


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_ends_the_plot_as_well(tmp_path, error):
    class Stops(wb.LivePlot):
        def record(self, record):
            super().record(record)
            if record["split"] == "test":
                raise error("stop")

    with pytest.raises(error):
        _train(Stops(path=tmp_path / "a.png"), display=False)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_is_the_same_with_a_plot(tmp_path):
    def losses(plot):
        return [record["loss"] for record in _train(plot, display=False)]

    assert losses(wb.LivePlot(path=tmp_path / "a.png", every=0.0)) == losses(Observer())


def test_a_plot_costs_a_step_next_to_nothing():
    plot = wb.LivePlot(show=False)
    plot.start(RunShape(1, 100_000, 100_000, 1, "cpu"))
    progress = Progress(1, 1, 1, 1, dict)
    began = time.thread_time()
    for _ in range(100_000):
        plot.step(progress)
    assert time.thread_time() - began < 1.0  # ten microseconds a step, on a slow machine
