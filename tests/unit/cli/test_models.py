"""``wholebatch models``."""

from __future__ import annotations

import json

import pytest

from wholebatch.cli.main import main
from wholebatch.models import MODELS


def said(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["models", *words])
    output = capsys.readouterr()
    return ended.value.code or 0, output.out, output.err


def test_the_table_has_every_model(capsys):
    code, out, err = said(capsys)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["name", "input", "parameters", "multiply-adds"]
    assert [line.split()[0] for line in lines[1:-1]] == list(MODELS)
    assert "timm:resnet50" in lines[-1]
    assert len({len(line) for line in lines[:-1]}) == 1
    resnet = next(line for line in lines if line.startswith("resnet20"))
    assert resnet.split()[1:] == ["3", "x", "32", "x", "32", "269,722", "40,551,040"]


def test_json_of_some_with_options(capsys):
    code, out, _ = said(capsys, "lenet", "resnet20", "in_channels=1", "image_size=28", "--json")
    assert code == 0
    first, second = json.loads(out)
    assert first["name"] == "lenet"
    assert first["image"] == second["image"] == [1, 28, 28]
    assert first["parameters"] == 6 * 26 + 16 * 151 + 120 * 257 + 84 * 121 + 850
    assert second["parameters"] == 269_722 - 2 * 9 * 16


def test_somebody_elses(capsys):
    words = ["torch.nn:Conv2d", "out_channels=4", "in_channels=2", "kernel_size=3", "image_size=8"]
    code, out, _ = said(capsys, *words)
    assert code == 0
    assert out.splitlines()[1].split() == ["torch.nn:Conv2d", "2", "x", "8", "x", "8", "76", "2,592"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["resnet2"], "no model 'resnet2'; did you mean 'resnet20'"),
        (["lenet", "nrom=batch"], "lenet has no option 'nrom'"),
        (["lenet", "image_size=abc"], "image_size=abc: expected a whole number, 1 or more"),
        (["lenet", "image_size=8"], "lenet does not take images of (3, 8, 8)"),
        (["lenet", "a.b=8"], "an option of a model has a name without dots"),
        (["vit", "image_size=30"], "no multiples of patch=4"),
        (["--norm", "batch"], "there is no option --norm"),
        (["nothing_like_it:f"], "nothing_like_it is not installed"),
    ],
)
def test_mistakes_in_one_line(capsys, words, answer):
    code, out, err = said(capsys, *words)
    assert (code, out) == (2, "")
    assert answer in err
    assert err.count("\n") == 1
