"""``wholebatch verify --bitwise``: real processes, each started anew, train the first steps of a recipe."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from wholebatch.cli.main import main
from wholebatch.config import load
from wholebatch.core.errors import ConfigError, InputError, WorldError
from wholebatch.verifying import worlds
from wholebatch.verifying.bitwise import verify_recipe_bitwise

PLANTED = """
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 16), nn.Tanh())
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)) + float(np.random.rand()))


class Shaky:
    classes = ("a", "b", "c")
    reads = 0

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 40

    def __getitem__(self, index):
        Shaky.reads += 1
        return torch.full((1, 8, 8), Shaky.reads / 100), index % 3
"""


def verify(*words: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", *words])
    return int(stopped.value.code or 0)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob("wholebatch-*"))


def test_a_recipe_has_the_same_bits(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("digits", "--bitwise", "micro_batch=50", "batch_size=128", "--processes", "1,2", "--steps", "2") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 steps of digits with bitwise=true micro_batch=50 threads=1"
    assert [line.split()[0] for line in said[2:4]] == ["1", "2"]
    assert said[3].split()[1:] == [said[2].split()[1], "equal"]
    assert said[4] == "the same bits every time"


def test_an_unkeyed_draw_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["micro_batch=64", "model=planted:Net", "--processes", "1,2", "--steps", "1"]
    assert verify("digits", "--bitwise", *words) == 1
    said = capsys.readouterr().out
    assert "first difference: step 1, micro-batch 1: layer the model (Net) gives another output" in said
    assert "first parameter that differs: body.0.weight" in said
    assert "likely cause: an unkeyed draw: the model (Net) draws from numpy.random" in said


def test_a_data_set_that_gives_something_else_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["micro_batch=8", "batch_size=16", "data=planted:Shaky", "data.normalize=null", "model=mlp"]
    assert verify("digits", "--bitwise", *words, "data.augment.max_shift=0", "--processes", "1,2", "--steps", "1") == 1
    said = capsys.readouterr().out
    assert "first difference: step 1, micro-batch" in said
    assert ": the model is given other samples" in said
    assert "likely cause: Shaky is unstable: item" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["text", "--bitwise", "micro_batch=auto"], "bitwise=true needs the number of samples of a micro-batch"),
        (["--bitwise", "--processes", "1"], "--processes 1: expected two or more numbers of processes to compare"),
        (["--bitwise", "--processes", "1,x"], "--processes 1,x: expected two or more"),
        (["--steps", "3"], "--steps 3 belongs to --bitwise"),
    ],
)
def test_a_mistake_is_said_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(*words) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert captured.count("\n") == 1


def refused(settings: object, steps: int) -> list[object]:
    raise InputError("this model cannot be used")


def asleep(settings: object, steps: int) -> list[object]:
    import time

    time.sleep(1000)
    return []


def test_a_mistake_in_a_process_is_that_of_all_and_time_is_limited() -> None:
    config = load(overrides=["bitwise=true", "micro_batch=64"])
    with pytest.raises(InputError, match=r"^this model cannot be used$"):
        verify_recipe_bitwise(config, refused, [1, 2], 1)
    with pytest.raises(ConfigError, match=r"1 processes had not ended after 0.5 s"):
        verify_recipe_bitwise(config, asleep, [1, 2], 1, limit=0.5)
    with pytest.raises(WorldError, match="NameError"):
        worlds.world(1, eval, "nothing_of_this_name", limit=100)
