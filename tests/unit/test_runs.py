"""Runs of a configuration: the folder, the promise at the end, and evaluating it again."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import pytest
import torch

import wholebatch as wb
from wholebatch import config, runs
from wholebatch.display import read_history
from wholebatch.trained.evaluation import evaluate
from wholebatch.trained.opening import evaluation_loader

FEW = {"epochs": "2", "batch_size": "512", "micro_batch": "128"}


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings(*words):
    given = {**FEW, **dict(word.split("=", 1) for word in words)}
    return config.load("digits", overrides=[f"{key}={value}" for key, value in given.items()])


def train(*words):
    """Train digits; return the history, the lines that were written, and the folder."""
    stream = io.StringIO()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors: more threads only wait for each other on a busy machine
    try:
        history = runs.train_recipe(settings(*words), stream=stream)
    finally:
        torch.set_num_threads(threads)
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("run: ")
    return history, lines, Path(lines[-1].removeprefix("run: "))


def promise(line):
    """The micro-batches and the difference that the promise names."""
    found = re.fullmatch(
        r"the last step made once more, in micro-batches of (\d+) instead of (\d+): "
        r"its gradient differs by (\S+) of its norm",
        line,
    )
    assert found, line
    return int(found[1]), int(found[2]), float(found[3])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        history, lines, folder = train("log_every=2")
        return history, lines, folder.resolve()


def test_a_run_leaves_its_folder(trained):
    history, lines, folder = trained
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "checkpoints",
        "checkpoints/.generation",
        "checkpoints/latest",
        "checkpoints/step-00000003",
        "checkpoints/step-00000003/manifest.json",
        "checkpoints/step-00000003/state.pt",
        "checkpoints/step-00000006",
        "checkpoints/step-00000006/manifest.json",
        "checkpoints/step-00000006/state.pt",
        "config.yaml",
        "curves.png",
        "curves.svg",
        "history.jsonl",
        "inputs.json",
    ]
    assert re.fullmatch(r"digits-\d{8}-\d{6}", folder.name)
    assert folder.parent.name == "runs"
    assert read_history(folder).records == history.records
    assert config.load_run(folder) == settings("log_every=2")
    steps = [line for line in lines if "  step " in line]
    assert [line.split()[1:4:2] for line in steps] == [["1/2", "2"], ["2/2", "4"], ["2/2", "6"]]
    assert len(lines) == 5 + len(steps)  # two epochs, the noise, the last step, the folder
    assert "2/2" in lines[4]


def test_the_last_step_is_exact(trained):
    other, micro, difference = promise(trained[1][-2])
    assert (other, micro) == (51, 128)
    assert 0 < difference < 1e-5


def test_evaluating_gives_what_the_history_says_to_the_last_bit(trained):
    history, _, folder = trained
    last = history.last("test")
    found = evaluate(folder).values
    assert (found["accuracy"], found["loss"]) == (last["accuracy"], last["loss"])
    assert evaluate(folder, ["batch_size=100", "micro_batch=9"]).values["accuracy"] == last["accuracy"]


STATES = [f"checkpoints/step-0000000{step}/state.pt" for step in (3, 6)]


def copy(folder, to):
    shutil.copytree(folder, to)
    return to


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_run_without_a_good_checkpoint_is_one_clear_error(trained, tmp_path, capsys, damage):
    folder = copy(trained[2], tmp_path / "run")
    damage(folder / STATES[1])
    assert evaluate(folder).values["samples"] == 360
    assert "step-00000003 is used instead" in capsys.readouterr().err
    damage(folder / STATES[0])
    with pytest.raises(wb.RunFolderError, match="holds no good checkpoint; did its training begin"):
        evaluate(folder)


@pytest.mark.parametrize(
    ("damage", "named"),
    [(lambda path: path.unlink(), "no config.yaml"), (lambda path: path.write_text("lr: [1"), "config.yaml")],
)
def test_a_damaged_configuration_is_one_clear_error(trained, tmp_path, damage, named):
    folder = copy(trained[2], tmp_path / "run")
    damage(folder / "config.yaml")
    with pytest.raises(wb.InputError, match=named):
        evaluate(folder)


def test_weights_of_another_model_are_refused(trained):
    with pytest.raises(wb.RunFolderError, match="does not fit the model mlp"):
        evaluate(trained[2], ["model=mlp"])


def test_a_run_that_is_over_is_gone_on_with_nothing_to_do(trained, tmp_path):
    folder = copy(trained[2], tmp_path / "run")
    stream = io.StringIO()
    history = runs.train_recipe(config.load_run(folder), resume=folder, stream=stream)
    assert history.records == trained[0].records
    assert "the last step was made before the run went on here" in stream.getvalue()


def test_runs_of_the_same_second_have_folders_of_their_own(in_tmp, monkeypatch):
    class Frozen(runs.datetime):
        @classmethod
        def now(cls):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(runs, "datetime", Frozen)
    same = settings()
    with runs._folder(same) as first, runs._folder(same) as second, runs._folder(same) as third:
        assert [path.name for path in (first, second, third)] == [
            "digits-20260102-030405",
            "digits-20260102-030405-2",
            "digits-20260102-030405-3",
        ]
    assert list(in_tmp.iterdir()) == []  # they stayed empty


SAMPLES = len(wb.data.digits("train"))


@pytest.mark.parametrize(
    ("words", "micro"),
    [
        (["epochs=1", "batch_size=2000", "micro_batch=1999", "schedule.warmup_steps=0"], SAMPLES),  # a single step
        (["epochs=2", "batch_size=1000"], 128),
        (["epochs=1", "batch_size=700"], SAMPLES % 700),
        (["epochs=1", "batch_size=700", "micro_batch=699"], SAMPLES % 700),
        (["accumulation_steps=4", "micro_batch=auto"], 128),
    ],
)
def test_the_promise_names_what_really_was_cut(in_tmp, words, micro):
    found = promise(train(*words)[1][-2])
    assert found[:2] == (round(0.4 * micro), micro)
    assert 0 < found[2] < 1e-5


def test_the_promise_names_what_auto_came_to(in_tmp):
    words = ["epochs=1", "batch_size=2000", "micro_batch=auto", "schedule.warmup_steps=0"]
    other, micro, difference = promise(train(*words)[1][-2])
    assert other == round(0.4 * micro)
    assert 1 <= micro <= SAMPLES
    assert 0 < difference < 1e-5


def test_the_promise_under_autocast_is_that_of_its_precision(in_tmp):
    assert 1e-5 < promise(train("precision=bf16")[1][-2])[2] < 3e-2


def test_the_promise_is_honest_where_the_model_breaks_it(in_tmp, monkeypatch):
    from torch import nn

    def broken(given):
        parts = build(given)
        body = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
        object.__setattr__(parts, "model", body)
        object.__setattr__(parts, "optimizer", torch.optim.SGD(body.parameters(), lr=0.1))
        return parts

    build = runs.build
    monkeypatch.setattr(runs, "build", broken)
    with pytest.warns(wb.PromiseWarning, match="batch norm") as told:
        _, lines, _ = train("micro_batch=128")
    assert promise(lines[-2])[2] > 1e-3
    assert len([w for w in told if issubclass(w.category, wb.PromiseWarning)]) == 1  # training said it already
    with pytest.warns(wb.PromiseWarning, match="batch norm"):
        _, lines, _ = train("micro_batch=auto")  # here it did not
    assert promise(lines[-2])[2] > 1e-3


def test_a_last_step_of_one_sample_says_so(in_tmp):
    _, lines, _ = train("epochs=1", f"batch_size={SAMPLES - 1}", "micro_batch=500", "schedule.warmup_steps=0")
    assert lines[-2] == "the last step had one sample, so it cannot be made once more in other micro-batches"


@pytest.mark.parametrize(
    "words", [["run_dir=file/run"], ["device=cuda:77"], ["model=mlp", "model.hidden=0"], ["optimizer.momentun=1"]]
)
def test_wrong_input_leaves_nothing(in_tmp, words):
    (in_tmp / "file").write_text("")
    with pytest.raises(wb.InputError):
        train(*words)
    assert [path.name for path in in_tmp.iterdir()] == ["file"]


def test_a_file_where_the_folder_of_runs_should_be(in_tmp):
    (in_tmp / "runs").write_text("mine")
    with pytest.raises(wb.RunFolderError, match="run_dir="):
        train()
    assert (in_tmp / "runs").read_text() == "mine"


@pytest.mark.parametrize(("words", "at_once"), [([], 128), (["micro_batch=auto"], 512)])
def test_the_test_data_come_no_more_at_once_than_in_training(words, at_once):
    given = settings(*words)
    assert evaluation_loader(given, runs.build(given)).batch_size == at_once
