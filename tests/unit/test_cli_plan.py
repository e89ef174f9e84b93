"""``wholebatch plan`` in a process of its own would load torch again, so the command is called here."""

from __future__ import annotations

import json

import pytest

from wholebatch.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *words])
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_what_a_step_takes_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "digits", "batch_size=8192", "memory=100MB")
    assert (code, err) == (0, "")
    numbers = json.loads(run(capsys, "digits", "batch_size=8192", "--memory", "100MB", "--json")[1])
    assert f"{numbers['largest_micro_batch']:,} samples" in out
    assert f"{numbers['micro_batches']} micro-batches" in out
    assert numbers["micro_batches"] == -(-8192 // numbers["largest_micro_batch"])
    assert numbers["peak"] <= 100_000_000
    assert "precision=bf16" in out


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "memory=1kB")
    assert code == 0
    assert "a single sample takes" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["memory=3goats"], "memory='3goats'; expected bytes or a number with a unit"),
        (["--recompute", "conf*"], "no layer is named 'conf*'"),
        (["modle.name=mlp"], "did you mean 'model"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
