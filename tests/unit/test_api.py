"""``train`` and ``evaluate``: what they refuse, and what they leave behind."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import wholebatch as wb
from wholebatch.data import BatchLoader
from wholebatch.step.micro_batch_size import Finder


def data(samples=30):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)


def train(model=None, given=None, **options):
    options = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD,
        "batch_size": 8,
        "epochs": 2,
        "display": False,
        **options,
    }
    return wb.train(nn.Linear(4, 3) if model is None else model, data() if given is None else given, **options)


class Gives(nn.Module):
    def __init__(self, reduction):
        super().__init__()
        self.reduction = reduction

    def forward(self, output, target):
        return nn.functional.cross_entropy(output, target, reduction=self.reduction)


X, Y = data()
OTHER = nn.Linear(4, 3)
WRONG = {
    "an empty data set": ({"given": (X[:0], Y[:0])}, "empty"),
    "an empty TensorDataset": ({"given": TensorDataset(X[:0], Y[:0])}, "empty"),
    "targets of another length": ({"given": (X, Y[:7])}, "inputs 30.*targets 7"),
    "a string": ({"given": "digits"}, "cannot train on a str"),
    "batch size 0": ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    "batch size 2.5": ({"batch_size": 2.5}, "batch_size must be a whole number"),
    "micro-batch 0": ({"micro_batch": 0}, "micro_batch=0"),
    "micro-batch true": ({"micro_batch": True}, "micro_batch=True"),
    "no epochs": ({"epochs": 0}, "epochs=0; expected a whole number, 1 or more"),
    "log_every -1": ({"log_every": -1}, "log_every=-1"),
    "no accumulation": ({"accumulation_steps": 0}, "accumulation_steps=0"),
    "another dtype": ({"given": (X.double(), Y)}, "float64.*float32"),
    "numpy's dtype": ({"given": (np.zeros((9, 4)), np.zeros(9, int))}, "float64.*float32"),
    "a loss that is a mean": ({"loss": Gives("mean")}, "bare scalar.*reduction="),
    "targets that are no classes": ({"given": (X, Y.float())}, "targets.long"),
    "an unknown device": ({"device": "gpu"}, "device='gpu' cannot be used"),
    "a device that is not there": ({"device": "cuda:77"}, "device='cuda:77' cannot be used"),
    "an unknown unit": ({"schedule_unit": "epochs"}, "expected 'step' or 'epoch'; did you mean 'epoch'"),
    "an optimizer's name": ({"optimizer": "sgd"}, "optimizer is a str"),
    "another model's optimizer": ({"optimizer": torch.optim.SGD(OTHER.parameters())}, "this model's parameters"),
    "a schedule that is a number": ({"schedule": 0.1}, "attach needs a function"),
    "another optimizer's schedule": (
        {"schedule": torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD(OTHER.parameters()), 0.9)},
        "belongs to another optimizer",
    ),
    "a model that is none": ({"model": len}, "model is a builtin_function_or_method"),
    "bitwise": ({"bitwise": True}, "bitwise=True with micro_batch='auto'"),
    "resume": ({"resume": "nowhere"}, "there is no good checkpoint"),
    "checkpoint_every": ({"checkpoint_every": "often"}, "checkpoint_every='often'"),
    "time_limit": ({"time_limit": 0}, "time_limit=0: expected a time above 0"),
    "precision": ({"precision": "fp17"}, "precision='fp17'"),
    "no test data": ({"eval_data": (X[:0], Y[:0])}, "empty"),
    "a metric that is none": ({"metrics": {"a": len}}, "update"),
    "a loader of another size": ({"given": BatchLoader((X, Y), 5)}, "batch_size is 8, but the loader given has 5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(name, tmp_path, capsys):
    options, named = WRONG[name]
    with pytest.raises(wb.WholebatchError, match=named) as caught:
        train(run_dir=tmp_path / "runs" / "mine", **options)
    assert isinstance(caught.value, wb.InputError | wb.InputTypeError)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_a_run_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    model = nn.Linear(4, 3)
    before = model.weight.clone()
    with pytest.raises(wb.RunFolderError, match=r"cannot be written.*run_dir="):
        train(model, run_dir=tmp_path / "file" / "run")
    assert torch.equal(model.weight, before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_leaves_history_and_curves_and_no_run_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train()
    assert list(tmp_path.iterdir()) == []
    history = train(run_dir="run", eval_data=data(), log_every=2)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoints", "curves.png", "curves.svg", "history.jsonl"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert lines == history.records
    assert {"loss", "accuracy"} <= set(history.last("test"))


def test_the_display_writes_a_line_per_epoch(capsys):
    train(display=True, eval_data=data())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "1/2" in lines[0]
    assert "test accuracy" in lines[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_run_can_be_read(tmp_path, error):
    from wholebatch.core.record import Observer
    from wholebatch.display import read_history

    class Stops(Observer):
        def step(self, progress):
            if progress.epoch == 2:
                raise error

    with pytest.raises(error):
        train(run_dir=tmp_path / "run", observers=[Stops()])
    assert [r["epoch"] for r in read_history(tmp_path / "run")] == [1]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000


def schedules():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    return {
        "short": (wb.CosineScheduler(max_update=2, base_lr=0.1), "step", True),
        "warmed up": (wb.Warmup(wb.LinearScheduler(2, base_lr=0.1), 1), "step", True),
        "attached": (wb.attach(wb.CosineScheduler(2, base_lr=0.1), optimizer), "step", True),
        "torch": (torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2), "step", True),
        "in epochs": (wb.CosineScheduler(max_update=2, base_lr=0.1), "epoch", False),
        "short in epochs": (wb.CosineScheduler(max_update=1, base_lr=0.1), "epoch", True),
        "as planned": (wb.CosineScheduler(max_update=8, base_lr=0.1), "step", False),
        "endless": (wb.SquareRootScheduler(0.1), "step", False),
        "a function": (lambda t: 0.1, "step", False),
    }


@pytest.mark.parametrize("name", schedules())
def test_a_schedule_that_ends_long_before_training_does_is_warned_about(name):
    schedule, unit, warned = schedules()[name]
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if isinstance(schedule, torch.optim.lr_scheduler.LRScheduler):
        schedule.optimizer = optimizer
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer=optimizer, schedule=schedule, schedule_unit=unit)
    found = [w for w in caught if "the schedule ends after" in str(w.message)]
    assert len(found) == warned
    if warned:
        assert found[0].filename == __file__
        assert ("schedule_unit='epoch'" in str(found[0].message)) == (unit == "step")


def test_the_callers_generator_is_left_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(model, micro_batch=3, eval_data=data())
    assert torch.equal(torch.rand(3), expected)


def test_test_data_may_come_as_a_loader_of_its_own_size():
    history = train(eval_data=BatchLoader(data(), 7, shuffle=False), micro_batch=3)
    other = train(torch.nn.Linear(4, 3), eval_data=torch.utils.data.DataLoader(TensorDataset(*data()), batch_size=9))
    assert {"loss", "accuracy"} <= set(history.last("test")) & set(other.last("test"))


def test_evaluate_takes_the_loaders_batch_size_or_its_own():
    model, sizes = nn.Linear(4, 3), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    wb.evaluate(model, data(), batch_size=13)
    wb.evaluate(model, BatchLoader(data(), 20, shuffle=False))
    wb.evaluate(model, data(600))
    assert sizes == [13, 13, 4, 20, 10, 512, 88]
    with pytest.raises(wb.ConfigError, match="'tpu'"):
        wb.evaluate(model, data(), device="tpu")


class Tight(nn.Module):
    """Has memory for six samples, also where nothing is kept for a backward."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.tested = set()

    def forward(self, x):
        if len(x) > 6:
            raise torch.OutOfMemoryError("injected")
        if not self.training:
            self.tested.add(len(x))
        return self.layer(x)


def test_no_more_is_tested_at_once_than_fits(monkeypatch):
    monkeypatch.setattr(Finder, "find", lambda *_, **__: 6)  # on a machine with so little memory
    model = Tight()
    history = train(model, batch_size=16, micro_batch="auto", eval_data=data())
    assert len(history.records) > 0
    assert model.tested
    assert max(model.tested) <= 6
