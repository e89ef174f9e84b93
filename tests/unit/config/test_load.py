"""Layers of settings, and what is answered to wrong ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from wholebatch.config import Config, load, load_run, to_yaml
from wholebatch.core.errors import ConfigError, RunFolderError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(*overrides: str, recipe: str | None = "digits", files: list[Path] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(recipe, files=files or [], overrides=overrides)
    return str(caught.value)


def test_bitwise_needs_a_micro_batch():
    assert "bitwise=true needs the number" in refused("bitwise=true", "micro_batch=auto")
    assert load("digits", overrides=["bitwise=true", "micro_batch=auto", "accumulation_steps=4"]).bitwise


def test_the_recipe_overrides_the_schema_files_override_the_recipe_and_the_command_line_overrides_files(tmp_path):
    first = write(tmp_path / "first.yaml", "epochs: 2\nseed: 5\nlr: 0.5\ndata:\n  augment: {max_shift: 2}\n")
    second = write(tmp_path / "second.yaml", "seed: 6\n")
    config = load("digits", files=[first, second], overrides=["lr=0.25", "model.width=8"])
    assert (config.batch_size, config.epochs, config.seed, config.lr) == (512, 2, 6, 0.25)
    assert config.data.augment.max_shift == 2
    assert config.data.augment.max_degrees == load("digits").data.augment.max_degrees > 0
    assert config.model.arguments == {"width": 8}
    assert load("digits", files=[second, first]).seed == 5


def test_digits_is_the_recipe_where_none_is_named_and_a_file_or_setting_may_name_it(tmp_path):
    assert load().recipe == load("digits").recipe == load(overrides=["recipe=digits"]).recipe == "digits"
    assert "'digit'" in refused(recipe=None, files=[write(tmp_path / "a.yaml", "recipe: digit")])
    assert "did you mean 'digits'?" in refused("recipe=digit", recipe=None)
    assert "given twice" in refused("recipe=other")


def test_naming_another_one_drops_what_was_said_about_the_old_one():
    config = load("digits", overrides=["optimizer=sgd", "optimizer.momentum=0.9"])
    assert (config.optimizer.name, config.optimizer.momentum, config.optimizer.weight_decay) == ("sgd", 0.9, None)
    assert load("digits").optimizer.weight_decay is not None
    kept = load("digits", overrides=[f"optimizer={load('digits').optimizer.name}"])
    assert kept == load("digits")
    assert load("digits", overrides=["schedule=linear"]).schedule.warmup_steps == 0
    assert load("digits", overrides=["schedule=null"]).schedule.shape == "constant"
    assert load("digits", overrides=["data.augment=null"]).data.augment.max_degrees == 0


@pytest.mark.parametrize("form", [["model=mlp"], ["model.name=mlp"], ["model={name: mlp}"]])
def test_a_group_is_named_in_any_of_three_ways(form):
    assert load("digits", overrides=form).model.name == "mlp"


def test_accumulation_steps_stands_in_place_of_the_recipes_micro_batch():
    config = load("digits", overrides=["accumulation_steps=5"])
    assert config.micro_batch == "auto"
    assert config.resolved_micro_batch() == 103  # 512 / 5, rounded up
    assert load("digits").resolved_micro_batch() == load("digits").micro_batch
    assert "give one of them" in refused("accumulation_steps=5", "micro_batch=64")
    assert load("digits", overrides=["accumulation_steps=5", "micro_batch=auto"]).resolved_micro_batch() == 103


def test_accumulation_steps_of_a_file_gives_way_to_a_micro_batch_of_the_command_line(tmp_path):
    path = write(tmp_path / "a.yaml", "accumulation_steps: 2\n")
    assert load(files=[path], overrides=["micro_batch=7"]).resolved_micro_batch() == 7
    assert load(files=[path]).resolved_micro_batch() == 256


WRONG_SETTINGS = [
    ("batchsize=3", "'batchsize'; did you mean 'batch_size'?"),
    ("batch-size=3", "did you mean 'batch_size'?"),
    ("momentum=0.9", "did you mean 'optimizer.momentum'?"),
    ("data.augment.max_shfit=1", "did you mean 'data.augment.max_shift'?"),
    ("zzz=3", "'wholebatch config show' lists the keys"),
    ("=3", "there is no key ''"),
    ("a..b=3", "there is no key 'a'"),
    ("optimizer.lr=3", "write lr=3"),
    ("optimizer.arguments.eps=1", "there is no key 'optimizer.arguments'"),
    ("optimizer.two words=1", "there is no key 'optimizer.two words'"),
    ("lr=abc", "lr=abc: expected a number above 0"),
    ("lr=true", "lr=true: expected a number above 0"),
    ("lr={a: 1}", "expected a number above 0"),
    ("lr=nan", "expected a finite number"),
    ("lr=.inf", "expected a finite number"),
    ("lr=0", "expected a number above 0"),
    ("lr=-0.1", "expected a number above 0"),
    ("lr=0.1 epochs=3", "expected a number above 0"),
    ("lr=[", "not YAML"),
    ("lr=???", "lr has no value"),
    ("lr=${lr}", "lr"),
    ("data.root=${nope}", "data.root"),
    ("lr=", "write lr=value"),
    ("lr", "'lr' has no value; write lr=value"),
    ("lrr", "did you mean 'lr'?"),
    ("batch_size=0", "batch_size=0: expected a whole number from 1"),
    ("batch_size=-3", "batch_size=-3: expected a whole number from 1"),
    ("batch_size=2.5", "batch_size=2.5: expected a whole number from 1"),
    ("batch_size=1e3", "expected a whole number from 1"),
    ("batch_size=null", "expected a whole number from 1"),
    ("batch_size=99999999999999999999", "expected a whole number from 1"),
    ("micro_batch=0", "expected auto, or a whole number"),
    ("micro_batch=many", "expected auto, or a whole number"),
    ("micro_batch=true", "expected auto, or a whole number"),
    ("accumulation_steps=513", "more passes than samples"),
    ("epochs=0", "epochs=0"),
    ("seed=-1", "seed=-1"),
    ("clip_norm=0", "clip_norm=0.0: expected null, or a number above 0"),
    ("precision=fp8", "expected fp32 or tf32 or bf16 or fp16 or bf16-true"),
    ("schedule_unit=steps", "did you mean 'step'?"),
    ("threads=2", "threads=2 belongs to bitwise=true"),
    ("bitwise=maybe", "bitwise=maybe"),
    ("device=gpu", "device=gpu: expected auto, cpu"),
    ("log_every=0", "log_every=0"),
    ("run_dir=' '", "the path of a folder"),
    ("data.augment=3", "expected a mapping"),
    ("data.augment.max_degrees=181", "from 0 to 180"),
    ("loss.label_smoothing=1.5", "from 0 to 1"),
    ("model=3", "expected a name or a mapping such as {name: …}"),
    ("model=null", "expected a name"),
    ("model.name=[1]", "model.name=[1]: expected text"),
    ("model.name.x=3", "model.name={x: 3}: expected text"),
    ("optimizer.betas=0.9", "a list of numbers such as [0.9, 0.999] or null"),
    ("optimizer.betas=[a]", "a list of numbers such as [0.9, 0.999] or null"),
    ("optimizer.eps=.nan", "optimizer.eps"),
    ("data.root=a\0b", "no setting can hold"),
    ("data.root=a\udc80b", "no setting can hold"),
    ('data.root="a\\0b"', "NUL"),
]


@pytest.mark.parametrize(("setting", "answer"), WRONG_SETTINGS, ids=[repr(item[0]) for item in WRONG_SETTINGS])
def test_a_wrong_setting_is_answered_with_the_key_and_the_repair(setting, answer):
    message = refused(setting)
    assert answer in message
    assert "\n" not in message
    assert "Error" not in message


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["model=lenet", "model.name=mlp"], "model.name"),
        (["lr=1", "lr=2"], "lr"),
        (["model={width: 3}", "model.width=4"], "model.width"),
    ],
)
def test_a_key_given_twice_is_refused(settings, key):
    assert f"{key} is given twice" in refused(*settings)


def test_a_key_given_twice_alike_is_no_contradiction():
    assert load(overrides=["lr=1", "lr=1.0"]).lr == 1


WRONG_FILES = {
    "a list": (b"- lr\n- 3\n", "expected key: value lines, got a list"),
    "a number": (b"3", "key: value"),
    "text": (b"hello", "there is no key 'hello'"),
    "half a mapping": (b"lr: 1\nmodel: {name: lenet\n", "line 3: not YAML"),
    "a key twice": (b"lr: 1\nlr: 2\n", "line 2: not YAML: found duplicate key lr"),
    "tabs": (b"model:\n\tname: lenet\n", "line 2: not YAML"),
    "python objects": (b"lr: !!python/object/apply:os.getcwd []\n", "line 1: not YAML"),
    "a NUL": (b"lr: \0\n", "not YAML"),
    "no text": (b"\x89PNG\r\n\x1a\n\xff\xfe", "not text in UTF-8"),
    "brackets without end": (b"[" * 5000, "not YAML"),
    "an unknown key": (b"model:\n  nme: lenet\nlearning_rate: 3\n", "learning_rate"),
    "numbers as keys": (b"1: 2\n", "there is no key '1'"),
    "a wrong value": (b"lr: fast\n", "lr=fast: expected a number above 0"),
    "both cuts": (b"micro_batch: 4\naccumulation_steps: 4\n", "give one of them"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_a_wrong_file_is_named_with_what_is_wrong(kind, tmp_path):
    text, answer = WRONG_FILES[kind]
    path = tmp_path / "my.yaml"
    path.write_bytes(text)
    message = refused(files=[path])
    assert str(path) in message
    assert answer in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    assert "there is no file" in refused(files=[tmp_path / "none.yaml"])
    assert "Is a directory" in refused(files=[tmp_path])
    assert "cannot read" in refused(files=[Path("a\0b")])
    locked = write(tmp_path / "locked.yaml", "lr: 1\n")
    locked.chmod(0)
    if not os.access(locked, os.R_OK):  # root reads everything
        assert "Permission denied" in refused(files=[locked])


def test_an_empty_file_changes_nothing(tmp_path):
    assert load(files=[write(tmp_path / "empty.yaml", "# nothing\n")]) == load()


@pytest.mark.parametrize("comments", [False, True])
def test_what_is_shown_can_be_read_back(tmp_path, comments):
    settings = [
        "optimizer=adamw", "optimizer.betas=[0.9, 0.95]", "optimizer.eps=1e-7", "lr=1e-5", "model.hidden=[3, 4]",
        "schedule.power=2", "run_dir='on'", "data.root='/a folder/x: y # z'", "seed=7", "accumulation_steps=3",
        "model.note=null", "model.flags={a: [1, true]}", "model.word='12'", "model.price='\\${x}'",
    ]  # fmt: skip
    config = load(overrides=settings)
    path = write(tmp_path / "config.yaml", to_yaml(config, comments=comments))
    assert load(files=[path]) == config
    assert load_run(tmp_path) == config
    assert config.model.arguments["word"] == "12"


def test_other_readers_of_yaml_see_the_same(tmp_path):
    shown = yaml.safe_load(to_yaml(load(overrides=["lr=1e-5", "optimizer.eps=2.5e-7", "run_dir='on'"])))
    assert (shown["lr"], shown["optimizer"]["eps"], shown["run_dir"]) == (1e-5, 2.5e-7, "on")


def test_every_key_is_shown_with_a_line_on_it():
    shown = to_yaml(Config(), comments=True).splitlines()
    assert len(shown) == len(to_yaml(Config()).splitlines()) > 30
    assert all(len(line.partition(" # ")[2]) > 3 for line in shown)


def test_paths_begin_at_home_and_numbers_are_folders_where_a_folder_is_meant(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load(overrides=["data.root=~/images", "run_dir=007"])
    assert (config.data.root, config.run_dir) == ("/home/someone/images", "007")


@pytest.mark.parametrize("none", ["null", "None", "~"])
def test_nothing_is_written_as_null_or_none(none):
    assert load(overrides=["clip_norm=1", "log_every=" + none]).log_every is None


def test_an_interpolation_reaches_what_another_layer_says(tmp_path):
    path = write(tmp_path / "a.yaml", "schedule:\n  final_lr: ${lr}\n")
    assert load(files=[path], overrides=["lr=0.5"]).schedule.final_lr == 0.5


def test_a_run_folder_is_read_and_overridden(tmp_path):
    write(tmp_path / "config.yaml", to_yaml(load(overrides=["seed=9"])))
    assert load_run(tmp_path, ["batch_size=32"]).seed == 9
    assert load_run(tmp_path, ["batch_size=32"]).batch_size == 32
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        load_run(tmp_path, ["batchsize=32"])


def test_what_is_no_run_folder_is_said(tmp_path):
    with pytest.raises(RunFolderError, match=r"^there is no run folder"):
        load_run(tmp_path / "none")
    with pytest.raises(RunFolderError, match=r"it has no config\.yaml"):
        load_run(tmp_path)
    with pytest.raises(RunFolderError, match="run folder"):
        load_run(Path("a\0b"))
    with pytest.raises(RunFolderError, match="run folder"):
        load_run(Path("a" * 5000))
