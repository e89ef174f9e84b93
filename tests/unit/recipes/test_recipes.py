"""Every recipe: its words are valid, and it trains on tiny data in the layout of the real ones."""

from __future__ import annotations

import io
import re
from contextlib import nullcontext
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wholebatch import runs
from wholebatch.cli import main as cli
from wholebatch.config import load, load_run, recipe_names
from wholebatch.config.build import build, check_names
from wholebatch.config.recipe import recipe_text
from wholebatch.core.errors import ConfigError, DataError, PromiseWarning
from wholebatch.data import ImageNetValidation, Select
from wholebatch.trained import evaluation, opening

NAMES = ("cifar10", "cifar100", "contrastive", "digits", "fashion_mnist", "folder", "imagenet")
PRESETS = [(name, preset) for name, preset in (("cifar10", "tutorial"), ("cifar10", "gpu"))]
SAMPLES = 16


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """No test reads or writes the user's cache folders, nor finds the user's data; one thread is enough."""
    monkeypatch.setenv("WHOLEBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("WHOLEBATCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pixels(*shape):
    return np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)


def cifar(root: Path, classes: int) -> list[str]:
    """The binary layout: one or two bytes of labels, then the image."""
    train = [f"data_batch_{n}.bin" for n in range(1, 6)] if classes == 10 else ["train.bin"]
    rows = 4 if classes == 10 else 20
    for name in (*train, "test_batch.bin" if classes == 10 else "test.bin"):
        labels = b"" if classes == 10 else b"\x01"
        images = pixels(rows, 3072)
        (root / name).write_bytes(b"".join(labels + bytes([n % 10]) + row.tobytes() for n, row in enumerate(images)))
    return ["model.width=4"]


def fashion(root: Path) -> list[str]:
    for prefix in ("train", "t10k"):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (SAMPLES, 28, 28))
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels(SAMPLES, 28, 28).tobytes())
        labels = bytes(n % 10 for n in range(SAMPLES))
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + SAMPLES.to_bytes(4, "big") + labels)
    return ["model.width=4"]


def pictures(root: Path, folders: dict[str, tuple[str, ...]], count: int) -> None:
    draw = np.random.default_rng(7)
    for part, classes in folders.items():
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = draw.integers(0, 256, (int(draw.integers(40, 60)), 50, 3), dtype=np.uint8)
                Image.fromarray(image).save(root / part / name / f"{name}_{number}.JPEG", "JPEG")


def photos(root: Path) -> list[str]:
    pictures(root, {".": ("cat", "dog")}, 10)
    return ["model.width=4", "data.size=32"]


def imagenet(root: Path) -> list[str]:
    synsets = ("n01440764", "n02119789", "n15075141")
    pictures(root, {"train": synsets}, 6)
    pictures(root, {"val": synsets}, 2)
    return ["model=resnet9", "model.width=4", "data.size=36", "data.crop_size=32"]


TINY = {
    "cifar10": lambda root: cifar(root, 10),
    "cifar100": lambda root: cifar(root, 100),
    "fashion_mnist": fashion,
    "folder": photos,
    "imagenet": imagenet,
}


def tiny(name: str, root: Path, *more: str):
    """The recipe on tiny data: two steps or so."""
    root.mkdir(exist_ok=True)
    few = [
        "batch_size=8",
        *([] if "micro_batch=auto" in more else ["micro_batch=4"]),
        "epochs=1",
        "schedule.warmup_steps=0",
        "workers=0",
        "run_dir=run",
    ]
    return load(name, overrides=[f"data.root={root}", *TINY[name](root), *few, *more])


def test_these_are_the_recipes():
    assert recipe_names() == sorted([*NAMES, "text"])
    for name in NAMES:
        results = files("wholebatch").joinpath("recipes", name, "RESULTS.md").read_text(encoding="utf-8")
        assert "accuracy" in results
        assert f"wholebatch train{'' if name == 'digits' else ' ' + name}" in results
        for word in ("versions", "date"):
            assert re.search(rf"^\| {word} \|", results, re.MULTILINE) or "not measured" in results.lower()


@pytest.mark.parametrize("name", NAMES)
def test_every_word_of_a_recipe_is_known(name):
    config = load(name)
    check_names(config)
    assert config.recipe == name
    assert config.schedule.warmup_steps * 10 < config.epochs * 1000
    assert recipe_text(name).startswith("# ")


@pytest.mark.parametrize(("recipe", "preset"), PRESETS)
def test_every_word_of_a_preset_is_known(recipe, preset, tmp_path):
    with_preset = load(recipe, files=[preset_file(recipe, preset)])
    check_names(with_preset)
    TINY[recipe](tmp_path)
    few = [f"data.root={tmp_path}", "schedule.warmup_steps=0"]
    few += ["schedule.decay_steps=1"] if preset == "gpu" else []
    parts = build(load(recipe, files=[preset_file(recipe, preset)], overrides=few))
    assert type(parts.model).__name__ == {"tutorial": "LeNet", "gpu": "ResNet9"}[preset]


def preset_file(recipe, preset):
    return Path(str(files("wholebatch").joinpath("recipes", recipe, "presets", f"{preset}.yaml")))


@pytest.mark.parametrize("name", [name for name in NAMES if name in TINY])
def test_two_steps_on_tiny_data_in_the_real_layout(name, tmp_path):
    stream = io.StringIO()
    by_batch = (
        load(name).model.arguments.get("norm") == "batch"
    )  # then a batch is one micro-batch, until the end cuts it
    config = tiny(name, tmp_path / "data", *["micro_batch=auto"] if by_batch else [])
    with pytest.warns(PromiseWarning, match="normalise each micro-batch") if by_batch else nullcontext():
        history = runs.train_recipe(config, stream=stream)
    train, test = history.last("train"), history.last("test")
    assert train["step"] >= 2
    assert np.isfinite(train["loss"])
    assert 0 <= test["accuracy"] <= 1
    said = stream.getvalue().splitlines()
    found = re.search(r"differs by (\S+) of its norm", said[-2])
    assert found
    assert by_batch or float(found[1]) < 1e-2, said[-2]  # bf16, where the processor has it
    kept = load_run(Path("run"))
    assert kept.precision in ("fp32", "bf16")  # what auto came to is kept, and the run can be evaluated again
    assert isinstance(kept.channels_last, bool)
    values = evaluation.evaluate(Path("run"), []).values
    assert values["accuracy"] == test["accuracy"]
    assert values["loss"] == test["loss"]


@pytest.mark.parametrize("model", ["lenet", "resnet20"])
def test_cifar10_takes_models_from_lenet_to_resnet(model, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    cifar(root, 10)
    few = [f"data.root={root}", f"model={model}", "batch_size=8", "micro_batch=8", "epochs=1", "run_dir=run"]
    history = runs.train_recipe(load("cifar10", overrides=[*few, "schedule.warmup_steps=0"]), stream=io.StringIO())
    assert np.isfinite(history.last("train")["loss"])


def test_the_tutorials_values(tmp_path):
    cifar(tmp_path, 10)
    config = load("cifar10", files=[preset_file("cifar10", "tutorial")], overrides=[f"data.root={tmp_path}"])
    said = (config.batch_size, config.epochs, config.lr, config.log_every, config.optimizer.momentum, config.precision)
    assert said == (4, 2, 0.001, 2000, 0.9, "fp32")
    parts = build(config)
    assert parts.schedule is None
    assert parts.loss.label_smoothing == 0
    group = parts.optimizer.param_groups[0]
    assert (type(parts.optimizer), group["weight_decay"]) == (torch.optim.SGD, 0)
    assert sum(p.numel() for p in parts.model.parameters()) == 62_006
    images, _ = parts.train_transform(
        (torch.tensor([[[[0, 255]]]], dtype=torch.uint8), 0), seed=0, epoch=0, indices=torch.arange(1)
    )
    assert images.flatten().tolist() == [-1, 1]


def test_imagenet_by_name_gives_images_and_labels(tmp_path):
    config = tiny("imagenet", tmp_path / "data", "data.sub_indices='0-277, 999'", "data.keep_orig_class_label=true")
    parts = build(config)
    assert (len(parts.train_data), len(parts.test_data)) == (12, 4)
    assert type(parts.test_data) is ImageNetValidation
    assert parts.num_classes == 1000
    images, labels = next(iter(runs._train_loader(config, parts)))
    assert images.shape == (8, 3, 32, 32)
    assert -1 <= images.min() < -0.5 < 0.5 < images.max() <= 1
    assert set(labels.tolist()) <= {0, 999}
    assert isinstance(parts.test_transform, Select)
    test_images, _ = next(iter(opening.evaluation_loader(config, parts)))
    stored = parts.test_data[0]["image"]
    assert torch.equal(test_images[0], torch.as_tensor(stored).permute(2, 0, 1))


def test_mean_and_deviation_of_imagenet_are_of_its_own_values(tmp_path):
    config = tiny("imagenet", tmp_path / "data", "data.normalize={mean: 0.5, std: 0.25}")
    parts = build(config)
    images, _ = next(iter(opening.evaluation_loader(config, parts)))
    stored = torch.as_tensor(parts.test_data[0]["image"]).permute(2, 0, 1)
    torch.testing.assert_close(images[0], (stored - 0.5) / 0.25)


def test_workers_read_the_same_imagenet(tmp_path):
    config = tiny("imagenet", tmp_path / "data")
    parts = build(config)
    alone = [batch[0] for batch in runs._train_loader(config, parts)]
    config.workers = 2
    with runs._train_loader(config, parts) as loader:
        together = [batch[0] for batch in loader]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("word", "kind", "answer"),
    [
        ("data.sise=3", ConfigError, "data.sise: imagenet does not take it; did you mean 'size'?"),
        ("data.process_images=false", ConfigError, "data.process_images: imagenet does not take it"),
        ("data.augment.color_jitter=[0.1, 0.1, 0.1]", ConfigError, "begin at -1"),
        ("data.sub_indices=3", DataError, "no image that is asked for"),
    ],
)
def test_what_imagenet_refuses(word, kind, answer, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    config = load("imagenet", overrides=[f"data.root={root}", *imagenet(root), word])
    with pytest.raises(kind) as caught:
        build(config)
    assert answer in str(caught.value)


def call(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return int(stop.value.code or 0)


def test_data_show_draws_imagenet(tmp_path, capsys):
    imagenet(tmp_path / "data")
    words = [f"data.root={tmp_path / 'data'}", "data.size=36", "data.crop_size=32", "model=resnet9"]
    assert call("data", "show", "imagenet", "-o", "a.png", "--count", "6", *words) == 0
    assert "6 of 18 training samples" in capsys.readouterr().out
    with Image.open("a.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["folder"], "say which folder of images: data.root=PATH"),
        (["cifar10"], "cifar10 was not found"),
        (["cifar100"], "cifar100 was not found"),
        (["imagenet", "model=resnet9"], "register at https://image-net.org"),
        (["cifar10", "channels_last=maybe"], "channels_last=maybe: expected true, false or auto"),
        (["cifar10", "precision=half"], "precision=half: expected fp32 or tf32 or bf16 or fp16 or bf16-true or auto"),
    ],
)
def test_what_is_missing_is_said_in_one_line(words, answer, capsys):
    assert call("train", *words) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()
