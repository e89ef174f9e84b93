"""``wholebatch demo`` and ``wholebatch verify``, as they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from wholebatch.cli.main import main
from wholebatch.core.errors import InputError
from wholebatch.verifying.demo import demo, table


def code(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(words)
    return int(stop.value.code or 0)


def test_ours_is_the_whole_batch_and_naive_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "picture.png"
    whole, ours, naive = demo(path, epochs=2)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(whole.loss) == len(whole.error) == 6
    assert ours.loss == pytest.approx(whole.loss, rel=1e-12)
    assert max(ours.error) < 1e-14
    assert min(naive.error) > 0.3
    assert naive.loss[-1] > ours.loss[-1] + 0.1
    said = capsys.readouterr().out
    assert table([whole, ours, naive]) in said
    assert f"picture: {path}" in said


def test_the_picture_is_the_same_again(tmp_path: Path) -> None:
    demo(tmp_path / "a.svg", epochs=1)
    demo(tmp_path / "b.svg", epochs=1)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(("to", "message"), [("x.gif", "must end in one of .png"), ("no/x.png", "there is no folder")])
def test_where_the_picture_cannot_go_is_said_before_training(
    to: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        demo(to)
    assert code("demo", "--to", to) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_verify_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("verify", "batch_size=40", "micro_batch=7") == 0
    said = capsys.readouterr().out
    assert "the data read twice, 40 items" in said
    assert "micro-batches of 7 " in said
    assert said.endswith("right in every case\n")


def test_verify_exits_with_one_where_the_step_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch import nn

    from wholebatch.models import MODELS

    def normalised(num_classes: int = 10, in_channels: int = 1, image_size: int = 8) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))

    monkeypatch.setitem(MODELS, "mlp", normalised)  # type: ignore[index]
    assert code("verify", "model=mlp", "batch_size=20") == 1
    assert "batch norm in training mode" in capsys.readouterr().out


def test_mistakes_of_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert code("verify", "batchsize=3") == 2
    assert "did you mean 'batch_size'" in capsys.readouterr().err
    assert code("verify", "cifar11") == 2
