"""``wholebatch branch``: continuations that leave the run as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wholebatch.branches import branch
from wholebatch.cli.main import main
from wholebatch.core.errors import InputError, RunFolderError


def cli(words: list[str]) -> object:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return end.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("branches") / "run"
    words = ["batch_size={0: 256, 1: 512}", "model=mlp", "epochs=2", "checkpoint_every=4 steps", f"run_dir={folder}"]
    assert cli(["train", "digits", *words]) == 0
    return folder


def test_branches_draw_alike_and_touch_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    words = ["--batch-size", "512,128", "--steps", "2", "--lr-rule", "linear", "--checkpoint", "4", "-o", "b.png"]
    assert cli(["branch", str(run), *words]) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert (tmp_path / "b.png").stat().st_size > 10_000
    found = json.loads((tmp_path / "b.json").read_text())
    small, large = found["branches"]
    assert (found["step"], small["batch_size"], large["batch_size"]) == (4, 128, 512)
    assert large["steps"] == 2
    assert large["samples"] <= small["samples"] < large["samples"] + 128
    assert large["lr"] == pytest.approx(4 * small["lr"])
    assert small["points"][-1][0] == small["samples"]
    assert small["points"][-1][1] < small["points"][0][1]


def test_a_branch_knows_nothing_of_the_others(run: Path) -> None:
    alone = branch(run, [512], 2, checkpoint=4).branches[0]
    after_another = branch(run, [128, 512], 2, checkpoint=4).branches[1]
    assert alone == after_another


def test_what_cannot_be_branched_is_said(run: Path) -> None:
    with pytest.raises(InputError, match="learning rate of this checkpoint is 0"):
        branch(run, [64], 1)
    assert branch(run, [64], 1, lr=0.01, lr_rule="none").branches[0].lr == 0.01
    with pytest.raises(RunFolderError, match="no checkpoint after 5 steps; there are"):
        branch(run, [64], 1, checkpoint=5)
    with pytest.raises(InputError, match="different sizes"):
        branch(run, [64, 64], 1)
    assert cli(["branch", str(run), "--batch-size", "12,x"]) == 2
