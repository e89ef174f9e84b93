"""Runs whose images are augmented, mixed and normalised by statistics that the run keeps."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from wholebatch import config, runs
from wholebatch.config import build
from wholebatch.core.errors import CheckpointError
from wholebatch.data import ArrayDataset, channel_statistics, digits, registry
from wholebatch.trained.evaluation import evaluate

EVERY = [
    "data.augment.crop_padding=1",
    "data.augment.flip=true",
    "data.augment.callable=torch:clone",
    "data.augment.mixup=0.2",
    "data.augment.cutmix=1",
]


def bare(split):
    """Digits that say nothing about how they are normalised."""
    whole = digits(split)
    return ArrayDataset(whole.inputs * 15, whole.targets, classes=whole.classes)


@pytest.fixture
def _bare_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "READERS", {**registry.READERS, "digits": lambda split, root=None: bare(split)})


def train(epochs=1, folder="run", *words):
    given = [f"epochs={epochs}", f"run_dir={folder}", "model.width=8", "schedule=constant", *EVERY, *words]
    stream = io.StringIO()
    history = runs.train_recipe(config.load("digits", overrides=given), stream=stream)
    return history, stream.getvalue()


@pytest.mark.usefixtures("_bare_digits")
def test_a_run_keeps_its_statistics_and_its_promise():
    history, said = train()
    found = channel_statistics(bare("train"))
    kept = config.load_run(Path("run"))
    assert kept.data.normalize == {"mean": list(found.mean), "std": list(found.std)}
    difference = re.search(r"its gradient differs by (\S+) of its norm", said)
    assert difference, said
    assert 0 < float(difference[1]) < 1e-5
    last = history.last("test")
    evaluated = evaluate(Path("run")).values
    assert (evaluated["loss"], evaluated["accuracy"]) == (last["loss"], last["accuracy"])
    assert "accuracy" not in history.last("train")


@pytest.mark.usefixtures("_bare_digits")
def test_evaluating_asks_the_run_and_not_the_training_images(monkeypatch):
    train()
    first = evaluate(Path("run")).values
    monkeypatch.setattr(build.transforms.data, "channel_statistics", lambda dataset: pytest.fail("computed again"))
    assert evaluate(Path("run")).values == first


@pytest.mark.usefixtures("_bare_digits")
def test_a_run_goes_on_with_its_mixing_and_not_with_another():
    train()
    kept = config.load_run(Path("run"), ["epochs=2"])
    history = runs.train_recipe(kept, resume=Path("run"), stream=io.StringIO())
    whole, _ = train(2, "whole")
    assert history.last("test")["loss"] == whole.last("test")["loss"]
    for changed in ("mixup=0.5", "flip=false", "callable=torch:neg"):
        other = config.load_run(Path("run"), ["epochs=3", f"data.augment.{changed}"])
        with pytest.raises(CheckpointError, match="transform"):
            runs.train_recipe(other, resume=Path("run"), stream=io.StringIO())
