"""``wholebatch plot``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wholebatch.cli import main as cli


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command line in a folder with two runs; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name, loss in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        lines = []
        for epoch in (1, 2, 3):
            place = {"step": 4 * epoch, "epoch": epoch, "samples": 100 * epoch, "kind": "epoch"}
            values = {"loss": loss / epoch, "accuracy": 1 - 0.5 / epoch, "lr": 0.1}
            lines.append({**place, "split": "train", **values, "seconds": 1.5})
            lines.append({**place, "split": "test", "loss": 1.1 * loss / epoch, "accuracy": 1 - 0.6 / epoch})
        (tmp_path / name / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["plot", *words])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


def test_a_pipe_gets_a_plain_chart(call):
    code, out, err = call("a")
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert rows[:3] == ["a", "loss", "a: train loss 0.3333   b: test loss 0.3667"]
    assert "accuracy (%)" in rows
    assert rows[-1].split()[-1] == "epoch"
    assert "\x1b" not in out


@pytest.mark.parametrize("x", ["epoch", "step", "samples", "time"])
def test_several_runs_over_each_axis(call, x):
    code, out, err = call("a", "b/", "--x", x, "--y", "loss")
    assert (code, err) == (0, "")
    assert "a: a train 0.3333   b: a test 0.3667   c: b train 0.6667   d: b test 0.7333" in out
    assert out.rstrip().endswith("training time (s)" if x == "time" else x)
    assert "accuracy" not in out


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_pictures(call, kind):
    for words in (["a"], ["a", "b"], ["a", "--x", "time"]):
        assert call(*words, "-o", f"out.{kind}") == (0, f"wrote out.{kind}\n", "")
        data = Path(f"out.{kind}").read_bytes()
        assert data.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind])
        Path(f"out.{kind}").unlink()


def test_one_run_is_drawn_as_in_its_folder(call):
    from wholebatch.display import curves, read_history

    assert call("a", "-o", "out.png")[0] == 0
    curves(read_history("a"), "curves.png", title="a")
    assert Path("out.png").read_bytes() == Path("curves.png").read_bytes()


def test_a_schedule_before_a_run(call):
    code, out, err = call(
        "--schedule", "{shape: cosine, max_update: 20, base_lr: 0.3, warmup_steps: 5, final_lr: 0.01}"
    )
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert rows[:2] == ["learning rate", "a: cosine 0.01"]
    assert rows[2].startswith("0.30 ┤") or rows[3].startswith("0.30 ┤")
    assert rows[-1].split() == ["0", "5", "10", "15", "step"]


def test_schedules_over_each_other(call):
    words = ["--schedule", "{shape: linear, max_update: 10, lr: 0.5, schedule_unit: epoch}"]
    words += ["--schedule", "{shape: square_root, lr: 0.5, unit: epoch}", "--until", "99"]
    code, out, err = call(*words)
    assert (code, err) == (0, "")
    assert "a: linear 0   b: square_root 0.05" in out
    assert out.split()[-1] == "epoch"
    assert call(*words, "-o", "s.svg") == (0, "wrote s.svg\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "plot needs the folder of a run, or --schedule"),
        (["zzz"], "no history can be read from zzz"),
        (["a", "a/"], "named twice"),
        (["a", "--x", "epoc"], "did you mean 'epoch'"),
        (["a", "--y", "los"], "did you mean 'loss'"),
        (["a", "-o", "x.gif"], "a picture ends in .png, .svg or .pdf"),
        (["a", "-o", "no/x.png"], "'no/x.png' cannot be written: No such file"),
        (["a", "--until", "3"], "--until is about --schedule"),
        (["a", "--schedule", "cosine"], "leave RUN"),
        (["--zzz"], "No such option"),
        (["--schedule", "{shape: cosin, max_update: 20}"], "did you mean 'cosine'"),
        (["--schedule", "{shape: cosine, max_updat: 20}"], "did you mean 'max_update'"),
        (["--schedule", "{shap: cosine}"], "did you mean 'shape'"),
        (["--schedule", "{shape: cosine}"], "cosine also needs max_update"),
        (["--schedule", "cosine"], "cosine also needs max_update"),
        (["--schedule", "{shape: cosine, max_update: 20, power: 3}"], "schedule.power: cosine does not take it"),
        (["--schedule", "{shape: cosine, max_update: x}"], "expected null, or a whole number"),
        (["--schedule", "{shape: cosine, max_update: 20, warmup_steps: 30}"], "must be less than"),
        (["--schedule", "{shape: cosine, max_update: 20, lr: 1, base_lr: 1}"], "say the same"),
        (["--schedule", "{shape: cosine, max_update: 20, lr: -1}"], "lr=-1.0: expected a number above 0"),
        (["--schedule", "{shape: ["], "not YAML"),
        (["--schedule", "{shape: constant}", "--until", "-1"], "--until -1: expected a number above 0"),
        (["--schedule", "{shape: constant}", "--schedule", "{shape: constant, unit: epoch}"], "different things"),
    ],
)
def test_mistakes_are_one_line(call, words, said):
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err
    assert not list(Path().glob("*.png"))


def test_drawing_a_run_loads_no_torch(call, tmp_path):
    code = (
        "import sys\nfrom wholebatch.cli.main import main\n"
        "try:\n    main(['plot', 'a'])\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_a_pipe_without_braille(call, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "wholebatch", "plot", "a"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, env=environment, timeout=60)
    assert done.stdout.isascii()
    assert b"***" in done.stdout
