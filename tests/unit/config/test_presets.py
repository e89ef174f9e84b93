"""Presets: settings of a recipe by name, laid over its own."""

from __future__ import annotations

import pytest

from wholebatch.cli.main import main
from wholebatch.config import load, load_run, recipe, to_yaml
from wholebatch.core.errors import ConfigError


@pytest.fixture(autouse=True)
def recipes(tmp_path, monkeypatch):
    """One recipe, with two presets, in a folder of its own."""
    folder = tmp_path / "recipes" / "shapes"
    (folder / "presets").mkdir(parents=True)
    (folder / "config.yaml").write_text("batch_size: 64\nepochs: 9\noptimizer: {name: adamw, weight_decay: 0.5}\n")
    (folder / "presets" / "tutorial.yaml").write_text(
        "batch_size: 4\nlr: 0.001\noptimizer: {name: sgd, momentum: 0.9}\n"
    )
    (folder / "presets" / "large.yaml").write_text("batch_size: 4096\n")
    monkeypatch.setattr(recipe, "files", lambda package: tmp_path)
    return folder


def test_a_preset_lies_between_the_recipe_and_everything_else(tmp_path):
    plain, found = load("shapes"), load("shapes", preset="tutorial")
    assert (plain.preset, plain.batch_size, plain.epochs, plain.optimizer.weight_decay) == (None, 64, 9, 0.5)
    assert (found.preset, found.recipe, found.batch_size, found.epochs, found.lr) == ("tutorial", "shapes", 4, 9, 0.001)
    assert (found.optimizer.name, found.optimizer.momentum, found.optimizer.weight_decay) == ("sgd", 0.9, None)
    assert load("shapes", overrides=["preset=tutorial"]) == found
    (tmp_path / "mine.yaml").write_text("batch_size: 8\nlr: 0.5\npreset: tutorial\nrecipe: shapes\n")
    mine = load(files=[tmp_path / "mine.yaml"], overrides=["lr=0.25"])
    assert (mine.preset, mine.batch_size, mine.lr, mine.optimizer.momentum) == ("tutorial", 8, 0.25, 0.9)
    assert load(files=[tmp_path / "mine.yaml"], overrides=["preset=null"]).optimizer.name == "adamw"
    assert load(files=[tmp_path / "mine.yaml"], overrides=["preset=large"]).preset == "large"
    assert load("shapes", preset="tutorial", overrides=["preset=tutorial"]) == found


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("tutoral", "the recipe shapes has no preset 'tutoral'; did you mean 'tutorial'?"),
        ("zzz", "the recipe shapes has no preset 'zzz'; presets: large, tutorial"),
        ("../config", "the recipe shapes has no preset '../config'"),
    ],
)
def test_an_unknown_preset_names_the_nearest(name, answer):
    with pytest.raises(ConfigError) as told:
        load("shapes", preset=name)
    assert str(told.value).startswith(answer)


def test_mistakes(recipes):
    with pytest.raises(ConfigError, match="the preset is given twice, as 'large' and preset=tutorial"):
        load("shapes", preset="large", overrides=["preset=tutorial"])
    (recipes / "presets" / "large.yaml").write_text("batchsize: 3\n")
    with pytest.raises(ConfigError, match="preset large of recipe shapes: there is no key 'batchsize'"):
        load("shapes", preset="large")
    (recipes / "presets" / "large.yaml").write_text("epochs: many\n")
    with pytest.raises(ConfigError, match="preset large of recipe shapes: epochs=many"):
        load("shapes", preset="large")


def test_a_recipe_without_presets_says_so(recipes):
    for file in (recipes / "presets").iterdir():
        file.unlink()
    (recipes / "presets").rmdir()
    with pytest.raises(ConfigError, match="the recipe shapes has no preset 'large'; it has none"):
        load("shapes", preset="large")


def test_a_run_keeps_what_came_of_it_and_cannot_change_it(recipes, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(load("shapes", preset="tutorial")))
    (recipes / "presets" / "tutorial.yaml").write_text("batch_size: 77\n")  # a later version's
    kept = load_run(run, ["preset=tutorial"])
    assert (kept.preset, kept.batch_size) == ("tutorial", 4)
    with pytest.raises(ConfigError, match="preset=large: a preset is for a new run; this one began with tutorial"):
        load_run(run, ["preset=large"])


def test_config_show_has_it(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["config", "show", "shapes", "preset=tutorial", "lr=0.5"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for line in ("preset: tutorial", "batch_size: 4", "lr: 0.5", "name: sgd"):
        assert any(part.strip().startswith(line) for part in shown.splitlines())
