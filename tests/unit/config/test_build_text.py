"""The recipe of text, and what is refused around it."""

from __future__ import annotations

import json
import math

import pytest
import torch

import wholebatch as wb
from wholebatch.cli import main as cli
from wholebatch.config import load
from wholebatch.config.build import build
from wholebatch.core.errors import ConfigError

TINY = ["model.width=8", "model.depth=1", "model.heads=1", "data.length=24"]

OWN = """
import torch
class Tokens(torch.utils.data.Dataset):
    vocabulary = 7
    def __init__(self, split, labelled=False):
        self.classes = ["x", "y"] if labelled else None
    def __len__(self): return 6
    def __getitem__(self, index):
        tokens = torch.arange(5) + index % 2
        return tokens, (tokens + 1) % 7 if self.classes is None else index % 2
def swapped(vocabulary, length):
    return torch.nn.Embedding(vocabulary, vocabulary)
class Bag(torch.nn.Module):
    def __init__(self, vocabulary, num_classes):
        super().__init__()
        self.table = torch.nn.EmbeddingBag(vocabulary, num_classes)
    def forward(self, tokens): return self.table(tokens)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_text_of_test.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_text_of_test"
    __import__("sys").modules.pop("own_text_of_test", None)


def test_the_recipe_is_built():
    parts = build(load("text"))
    assert parts.classes == ()
    assert parts.train_transform is None
    assert parts.normalize == "auto"
    assert parts.train_data.inputs.shape[1] == parts.model.places.shape[0] == 128
    assert len(parts.model.tokens.weight) == 256
    assert parts.loss.ignore_index == -100
    assert parts.steps_per_epoch > load("text").schedule.warmup_steps


def test_training_it_in_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.md").write_text("".join(f"This is line {n}.\n\n" * (1 + n % 2) for n in range(150)))
    words = ["text", "data.root=book.md", "epochs=1", "batch_size=50", "micro_batch=20", "run_dir=run", *TINY]
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *words, "schedule.warmup_steps=1"])
    output = capsys.readouterr()
    assert not ended.value.code, output.err
    assert "the last step made once more, in micro-batches of" in output.out
    assert float(output.out.split("differs by ")[1].split()[0]) < 1e-5
    record = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    test = next(one for one in record if one["split"] == "test")
    assert test["loss"] == pytest.approx(math.log(256), rel=0.1)
    assert 0 <= test["accuracy"] < 0.5
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", "run"])
    said = capsys.readouterr().out
    assert not ended.value.code
    assert f"loss {test['loss']:.6g}" in said


def test_a_data_set_of_ones_own(own):
    """It says its vocabulary; with classes each text has one label."""
    parts = build(load("text", overrides=[f"data.name={own}:Tokens", *TINY[:3], "schedule.warmup_steps=1"]))
    assert len(parts.model.tokens.weight) == 7
    assert parts.model(parts.train_data[0][0].unsqueeze(0)).shape == (1, 7, 5)
    words = [f"data.name={own}:Tokens", "data.labelled=true", f"model.name={own}:Bag", "schedule.warmup_steps=1"]
    parts = build(load("text", overrides=words))
    assert parts.classes == ("x", "y")
    assert parts.model.table.weight.shape == (7, 2)


@pytest.mark.parametrize(
    ("recipe", "words", "match"),
    [
        ("digits", ["data.name=text"], r"small_cnn: it cannot take the samples of text, of shape \(256,\)"),
        ("text", ["data.augment.flip=true"], "data.normalize and data.augment are for images.*wholebatch train text"),
        ("text", ["data.normalize={mean: 0.5, std: 0.5}"], "are for images"),
        ("text", ["model.name=vit"], r"vit: it cannot take the samples of text, of shape \(128,\)"),
        ("text", ["data.name=digits"], r"cannot take the samples of digits, of shape \(1, 8, 8\)"),
        ("text", ["data.lenght=3"], "data.lenght: text does not take it; did you mean 'length'"),
        ("text", ["model.vocabulary=3"], "model.vocabulary: transformer_lm does not take it"),
        ("text", ["model.heads=5"], "width 96 is no multiple of heads=5"),
    ],
)
def test_what_does_not_fit(recipe, words, match):
    config = load(recipe, overrides=words)
    with pytest.raises(ConfigError, match=match):
        build(config)


def test_a_model_whose_classes_are_the_last_axis(own):
    config = load("text", overrides=[f"data.name={own}:Tokens", f"model.name={own}:swapped"])
    with pytest.raises(ConfigError, match=r"expected \(2, 7, 5\), the classes being axis 1.*transpose\(1, 2\)"):
        build(config)


def test_a_sheet_shows_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["data", "show", "text"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "wholebatch: text is text, and a sheet shows images\n"
    assert not list(tmp_path.iterdir())


def test_models_lists_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["models", "transformer_lm", "length=128", "width=96", "depth=2", "heads=3", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"name": "transformer_lm", "tokens": 128, "parameters": 260_736, "multiply_adds": 37_748_736}


def test_the_promise_on_the_recipes_model():
    parts = build(load("text", overrides=TINY))
    check = wb.verify(parts.model, parts.loss, parts.train_data.take(torch.arange(9)), show=False)
    assert check.ok
