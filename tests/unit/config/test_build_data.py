"""From the group data of a configuration to data sets, and to training on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import wholebatch as wb
from wholebatch.cli import main as cli
from wholebatch.config import load
from wholebatch.config.build import build, check_names, look
from wholebatch.core.errors import ConfigError, DataError
from wholebatch.data import ImageDataset, Normalize


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("WHOLEBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("WHOLEBATCH_DATA", raising=False)


@pytest.fixture
def photos(tmp_path):
    """Two classes of 20 pictures of different sizes, which a model can tell apart."""
    draw = np.random.default_rng(0)
    for name, channel in (("red $1$ cat", 0), ("grün", 1)):
        for number in range(20):
            height, width = draw.integers(10, 30, 2)
            pixels = draw.integers(0, 100, (height, width, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            file = tmp_path / "photos" / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return tmp_path / "photos"


def settings(photos, *more):
    return load(overrides=["data.name=folder", f"data.root='{photos}'", "data.size=12", *more])


def test_a_folder_is_built(photos):
    parts = build(settings(photos))
    assert isinstance(parts.train_data, ImageDataset)
    assert (len(parts.train_data), len(parts.test_data)) == (32, 8)
    assert parts.classes == ("grün", "red $1$ cat")
    found = wb.data.channel_statistics(parts.train_data)
    for transform in (parts.train_transform, parts.test_transform):
        assert isinstance(transform, Normalize)
        assert (tuple(transform.mean), tuple(transform.std)) == (found.mean, found.std)
    images = next(iter(wb.data.BatchLoader(parts.train_data, 32, transform=parts.train_transform)))[0]
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert parts.model(images).shape == (32, 2)


def test_mean_and_deviation_can_be_said(photos):
    transform = build(settings(photos, "data.normalize={mean: 0.5, std: 0.25}")).test_transform
    assert (transform.mean, transform.std) == (0.5, 0.25)
    each = build(settings(photos, "data.normalize={mean: [0.5,0.4,0.3], std: [0.2,0.2,0.2]}")).train_transform
    assert tuple(each.mean) == (0.5, 0.4, 0.3)
    digits = build(load(overrides=["data.normalize={mean: 0.3, std: 0.4}"])).test_transform
    assert digits.scale == 1 / 16  # the values of the digits end there


def test_names_are_checked_without_reading():
    check_names(load(overrides=["data=cifar10"]))
    for settings_, answer in [
        ("data=cifra10", "data.name=cifra10: there is no such data set; did you mean 'cifar10'?"),
        ("data=folder data.sise=3", "data.sise: folder does not take it; did you mean 'size'?"),
        ("data=digits data.size=3", "data.size: digits does not take it; it takes none"),
        ("data=torch.utils.data:TensorDatset", "has no 'TensorDatset'; did you mean 'TensorDataset'"),
    ]:
        with pytest.raises(ConfigError) as caught:
            check_names(load(overrides=settings_.split()))
        assert answer in str(caught.value)


def test_images_of_different_sizes_are_refused_before_training(photos):
    with pytest.raises(DataError, match=r"is \d+ × \d+, .* is \d+ × \d+ \(height × width\); say size=N"):
        build(load(overrides=["data.name=folder", f"data.root='{photos}'"]))


def test_parts_of_different_classes(tmp_path, monkeypatch):
    (tmp_path / "own_data_of_build_data.py").write_text(
        "import torch\ndef make(split):\n    import wholebatch as wb\n"
        "    return wb.data.ArrayDataset(torch.zeros(2, 1, 8, 8), [0, 1], classes=[split, 'b'])\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="its test part"):
        build(load(overrides=["data.name=own_data_of_build_data:make"]))


def test_a_sheet_shows_what_was_stored(photos):
    images, labels, data = look(settings(photos), 6)
    assert len(images) == len(labels) == 6
    order = wb.data.epoch_order(32, 0, 0)
    for image, label, index in zip(images, labels, order.tolist(), strict=False):
        stored, number = data[index]
        assert np.abs(image * 255 - stored.numpy()).max() < 1e-3
        assert label == data.classes[number]


def run(*words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    return int(stop.value.code or 0)


def test_a_run_on_a_folder_with_workers_is_the_one_without(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["train", "data.name=folder", f"data.root={photos}", "data.size=12", "batch_size=16", "micro_batch=6"]
    common += ["epochs=3", "lr=0.01", "optimizer=sgd", "schedule=constant", "model=mlp"]
    losses = []
    for workers in (0, 2):
        assert run(*common, f"workers={workers}", f"run_dir=run{workers}") == 0
        lines = [json.loads(line) for line in (tmp_path / f"run{workers}" / "history.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if line["split"] == "test"])
        assert lines[-1]["accuracy"] > 0.8
    assert losses[0] == losses[1]
    capsys.readouterr()
    assert run("evaluate", "run2") == 0
    assert f"loss {losses[1][-1]:.6g}" in capsys.readouterr().out


def test_data_show(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("data", "show", str(photos), "-o", "a.png", "--count", "7") == 0
    assert "a.png: 7 of 32 training samples" in capsys.readouterr().out
    with Image.open("a.png") as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert run("data", "show", "digits", "-o", "b.svg") == 0
    assert (tmp_path / "b.svg").read_text().startswith("<?xml")
    capsys.readouterr()
    for words, answer in [
        (["show", "nope"], "no data set and no path 'nope'"),
        (["show", "digits", "-o", "a.jpg"], "expected a file that ends with .png"),
        (["show", "digits", "-o", "none/a.png"], "cannot be written"),
        (["show", "digits", "--count", "0"], "--count"),
        (["show", "cifar10"], "cifar10 was not found"),
        (["check", "nope"], "no data set and no path 'nope'"),
    ]:
        assert run("data", *words) == 2
        error = capsys.readouterr().err
        assert answer in error
        assert error.count("\n") == 1


def test_data_check(photos, capsys):
    assert run("data", "check", str(photos)) == 0
    assert "images             40  in 2 classes" in capsys.readouterr().out
    (photos / "grün" / "x.png").write_bytes((photos / "red $1$ cat" / "3.png").read_bytes())
    (photos / "grün" / "y.png").write_text("no image")
    assert run("data", "check", str(photos)) == 1
    out = capsys.readouterr().out
    assert "unreadable          1" in out
    assert "mislabelled         2  files that show 1 pictures" in out
    assert "grün/x.png = red $1$ cat/3.png" in out
    assert run("data", "check", str(photos), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 42
    assert found["mislabelled"] == [["grün/x.png", "red $1$ cat/3.png"]]
    assert [entry["file"] for entry in found["unreadable"]] == ["grün/y.png"]


def test_images_of_every_range_become_pictures():
    from wholebatch.config.build_data import as_pictures

    normalize = Normalize([0.2, 0.3, 0.4], [0.5, 0.6, 0.7])
    stored = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    for images, transform in ((normalize.apply(stored), normalize), (stored, None)):
        np.testing.assert_allclose(as_pictures(images, transform), stored / 255, atol=1e-6)
    floats = np.stack(as_pictures(torch.randn(2, 3, 4, 5) * 7, None))
    assert (floats.min(), floats.max()) == (0, 1)
