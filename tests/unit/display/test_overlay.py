import pytest

from wholebatch.core.errors import InputError
from wholebatch.core.record import History
from wholebatch.display.overlay import overlay


def _run(seconds=2.0, loss=1.0):
    history = History()
    for epoch in (1, 2):
        for step in (2 * epoch - 1, 2 * epoch):
            place = {"step": step, "epoch": epoch, "samples": 10 * step, "split": "train"}
            history.records.append({**place, "kind": "step", "loss": loss / step, "lr": 0.1})
        history.records.append({**place, "kind": "epoch", "loss": loss / epoch, "accuracy": 0.5, "seconds": seconds})
        history.records.append({**place, "split": "test", "kind": "epoch", "loss": 2 * loss / epoch, "accuracy": 0.75})
    return history


def _points(chart, panel=0):
    return {line.label: (line.x.tolist(), line.y.tolist()) for line in chart.panels[panel].lines}


def test_one_run_by_epoch():
    chart = overlay({"a": _run()}, title="a")
    assert [panel.ylabel for panel in chart.panels] == ["loss", "accuracy (%)"]
    assert chart.xlabel == "epoch"
    assert _points(chart) == {"train loss": ([1, 2], [1, 0.5]), "test loss": ([1, 2], [2, 1])}
    assert _points(chart, 1) == {"train accuracy": ([1, 2], [50, 50]), "test accuracy": ([1, 2], [75, 75])}


@pytest.mark.parametrize(
    ("x", "train", "test", "label"),
    [
        ("step", [1, 2, 3, 4], [2, 4], "step"),
        ("samples", [10, 20, 30, 40], [20, 40], "samples"),
        ("time", [1, 2, 3, 4], [2, 4], "training time (s)"),
    ],
)
def test_by_anything_else_the_steps_are_drawn(x, train, test, label):
    chart = overlay({"a": _run()}, x, ["loss"])
    assert chart.xlabel == label
    assert _points(chart) == {"train loss": (train, [1, 1 / 2, 1 / 3, 1 / 4]), "test loss": (test, [2, 1])}


def test_several_runs_have_their_names():
    chart = overlay({"a": _run(), "b": _run(loss=3.0)}, "epoch", ["loss"])
    assert list(_points(chart)) == ["a train", "a test", "b train", "b test"]
    assert _points(chart)["b train"] == ([1, 2], [3, 1.5])


def test_time_has_a_unit_that_fits():
    assert overlay({"a": _run(seconds=600.0)}, "time").xlabel == "training time (min)"
    hours = overlay({"a": _run(seconds=36_000.0), "b": _run()}, "time", ["accuracy"])
    assert hours.xlabel == "training time (h)"
    assert _points(hours)["a test"][0] == [10, 20]


def test_steps_after_the_last_finished_epoch_go_on_as_fast():
    history = _run()
    history.records.append({"step": 6, "epoch": 3, "samples": 60, "kind": "step", "split": "train", "loss": 0.1})
    assert _points(overlay({"a": history}, "time", ["loss"]))["train loss"][0][-1] == 6


def test_other_values():
    assert _points(overlay({"a": _run()}, "step", ["lr"])) == {"train lr": ([1, 2, 3, 4], [0.1] * 4)}


@pytest.mark.parametrize(
    ("x", "values", "words"),
    [
        ("epoc", [], "did you mean 'epoch'"),
        ("epoch", ["los"], "did you mean 'loss'"),
        ("epoch", ["zzz"], "there are accuracy, loss, lr"),
    ],
)
def test_mistakes(x, values, words):
    with pytest.raises(InputError, match=words):
        overlay({"a": _run()}, x, values)


def test_no_records_and_no_times():
    with pytest.raises(InputError, match="no records yet in a"):
        overlay({"a": History()})
    steps = History(_run().select(kind="step")[:1])
    with pytest.raises(InputError, match="no epoch"):
        overlay({"a": steps}, "time")
    with pytest.raises(InputError, match="--x step"):
        overlay({"a": steps, "b": _run()}, "epoch")
    assert overlay({"a": steps}, "epoch").xlabel == "step"
    timeless = _run()
    for record in timeless:
        record.pop("seconds", None)
    with pytest.raises(InputError, match="have no times"):
        overlay({"a": timeless}, "time")


def test_a_loss_over_many_decades_gets_a_log_scale():
    history = _run()
    assert overlay({"a": history}).panels[0].yscale == "linear"
    history.records[-1]["loss"] = 1e-4
    assert [panel.yscale for panel in overlay({"a": history}).panels] == ["log", "linear"]
