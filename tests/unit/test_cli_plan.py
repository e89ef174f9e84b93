"""``wholebatch plan`` in a process of its own would load torch again, so the command is called here."""

from __future__ import annotations

import json

import pytest

from wholebatch.cli.main import main

LINK = ["--processes", "8", "--link", "10Gb/s", "--samples-per-second", "1000"]
VIT = ["model=vit", "model.width=16", "model.depth=2", "model.heads=4", "parallel.tensor=2", *LINK]


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


def test_many_processes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["batch_size=4096", "--processes", "1024", "--link", "400Gb/s", "--samples-per-second", "1000"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "1,024 processes (data 1,024), links of 400Gb/s each way, 20 µs a message" in out
    assert "one process: 1,000 samples/s, as said" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("%")] == ["1", "8", "64", "512", "1,024"]
    code, out, _ = run(capsys, *words, "--json")
    found = json.loads(out)
    many = found["processes"]
    assert many["sent_gradients"] == round(2 * 1023 / 1024 * found["gradients"])
    assert many["link_bytes_per_second"] == 5e10
    assert many["table"][0]["efficiency"] == 1
    assert many["table"][-1]["efficiency"] == many["efficiency"] < 1


def test_many_processes_in_a_layout(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model=mlp", "batch_size=4096", "--processes", "64", "--link", "10Gb/s", "parallel.pipeline=2"]
    code, out, _ = run(capsys, *words, "--shard", "4", "--json")
    assert code == 0
    many = json.loads(out)["processes"]
    assert (many["data"], many["shard"], many["pipeline"]) == (8, 4, 2)
    assert many["sent_activations"] > 0
    assert many["seconds_a_sample"] > 0  # measured


def test_many_processes_with_split_layers(capsys: pytest.CaptureFixture[str]) -> None:
    """4 tokens of 16 numbers: each of 4 branches and of 4 norms sends them, forward and backward."""
    code, out, _ = run(capsys, *VIT, "batch_size=4096")
    assert code == 0
    assert "8 processes (data 4, tensor 2)" in out
    assert "of the parameters are split; what that sends within the group takes" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("%")] == ["2", "8"]
    found = json.loads(run(capsys, *VIT, "batch_size=4096", "--json")[1])
    many, tokens, norms = found["processes"], 8 * 4 * 16 * 4, 4 * 2 * 16 * 4
    assert (many["data"], many["tensor"], many["samples"]) == (4, 2, 1024)
    assert many["sent_activations"] == (1024 * (2 * tokens + tokens) + 2 * norms) // 2
    split = 4 * 2 * (16 * 48 + 48 + 16 * 16 + 16 * 64 + 64 + 64 * 16)  # of both layers, bytes
    assert many["sent_gradients"] == round(2 * 3 / 4 * (found["gradients"] - split / 2))
    assert many["compute"] == pytest.approx(1.024 * (1 - split / found["parameters"] / 2))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "8"], "needs the speed of their links"),
        (["--link", "1Gb/s"], "say how many: --processes 8"),
        (["--processes", "8", "--link", "fast"], "expected a rate"),
        (["--processes", "8", "--link", "1Gb/s", "parallel.tensor=2"], "tensor=2 needs a plan for SmallCNN"),
        ([*VIT, "--shard", "2"], "shard=2 with tensor=2 is not available in this version"),
        ([*VIT, "parallel.pipeline=2"], "pipeline=2 with tensor=2 is not available in this version"),
        (["model=vit", "model.heads=3", "parallel.tensor=2", *LINK], "3 heads cannot be shared by 2 processes alike"),
        ([*VIT, "--processes", "9"], "9 processes are no multiple of shard=1 × pipeline=1 × tensor=2 = 2"),
        (["--processes", "9", "--link", "1Gb/s", "parallel.shard=2"], "9 processes are no multiple of shard=2"),
        (["--processes", "9", "--link", "1Gb/s", "--shard", "2"], "9 processes are no multiple of shard=2"),
    ],
)
def test_half_a_question_is_refused(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    code, _, errors = run(capsys, *words)
    assert code == 2
    assert said in errors
    assert errors.count("\n") == 1
