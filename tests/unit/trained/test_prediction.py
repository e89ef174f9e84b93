"""``wholebatch predict``: any file becomes what the run was trained on, and none stops the others."""

from __future__ import annotations

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from wholebatch.core.errors import DataError
from wholebatch.data import digits, registry
from wholebatch.trained import prediction
from wholebatch.trained.evaluation import evaluate
from wholebatch.trained.inputs import Inputs, covering, inputs_of
from wholebatch.trained.opening import evaluation_loader, opened, opened_with_data
from wholebatch.trained.prediction import image_files, predict


def all_of(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


@pytest.fixture
def damaged(pictures, tmp_path):
    """A folder of two good files and two that are none, in the order good, bad, good, bad."""
    shutil.copy(pictures / "test/red/0.png", tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8 no picture")
    shutil.copy(pictures / "test/blue/0.png", tmp_path / "c.PNG")
    whole = (pictures / "test/blue/1.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def test_files_give_what_evaluating_gave(pictures, pictures_run, monkeypatch):
    monkeypatch.setattr(prediction, "AT_ONCE", 4)
    files = image_files([str(pictures / "test")])
    found = list(predict(opened(pictures_run), files))
    assert [one.file for one in found] == files == all_of(pictures / "test")
    right = [one.label == one.file.split("/")[-2] for one in found]
    assert 0.4 < sum(right) / len(right) == evaluate(pictures_run).values["accuracy"]
    settings, parts = opened_with_data(pictures_run)
    parts.model.eval()
    outputs = {}
    with torch.no_grad():
        place = 0
        for images, _ in evaluation_loader(settings, parts):
            for row in parts.model(images).double().softmax(1):
                outputs[parts.test_data.path(place)] = row
                place += 1
    for one in found:
        assert one.probability == pytest.approx(float(outputs[one.file].max()), rel=1e-6)
        assert one.label == parts.classes[int(outputs[one.file].argmax())]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_digits_as_pictures_of_any_mode_are_taken_for_the_digits_they_are(digits_run, tmp_path, mode):
    test, run = digits("test"), opened(digits_run)
    with torch.no_grad():
        stored = test.transform((test.inputs[:20], test.targets[:20]), seed=0, epoch=0, indices=None)[0]
        expected = run.model(stored).softmax(1).max(1)
    files = []
    for number in range(20):
        pixels = np.round(test.inputs[number, 0].numpy() * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{number:02}.png")
        files.append(str(tmp_path / f"{number:02}.png"))
    found = list(predict(run, files))
    assert [one.label for one in found] == [str(label) for label in expected.indices.tolist()]
    assert [one.probability for one in found] == pytest.approx(expected.values.tolist(), abs=0.01)


def test_what_cannot_be_read_is_named_and_the_others_are_printed(pictures_run, damaged, call):
    missing = damaged / "none.png"
    code, out, err = call("predict", pictures_run, damaged, missing)
    assert code == 1
    head, first, second = out.splitlines()
    assert head.split() == ["file", "class", "probability"]
    assert first.startswith(f"{damaged}/a.png  ")
    assert second.startswith(f"{damaged}/c.PNG  ")
    assert 0 < float(first.split()[-1]) <= 1
    assert first.split()[1] in ("red", "green", "blue")
    lines = err.splitlines()
    assert [str(damaged / name) in line for name, line in zip(("b.jpg", "d.png", "none.png"), lines, strict=True)]
    assert all(line.startswith("wholebatch: ") for line in lines)
    assert "there is no image" in lines[2]


def test_csv_and_json_say_the_same(pictures_run, damaged, call):
    code, out, err = call("predict", pictures_run, damaged, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, err.count("\n")) == (1, 2)
    assert [row["file"] for row in rows] == [str(damaged / "a.png"), str(damaged / "c.PNG")]
    code, out, _ = call("predict", pictures_run, damaged, "--format", "json")
    said = json.loads(out)
    assert code == 1
    assert [(one["file"], one["class"]) for one in said["predictions"]] == [(r["file"], r["class"]) for r in rows]
    assert [one["probability"] for one in said["predictions"]] == pytest.approx(
        [float(row["probability"]) for row in rows], abs=1e-6
    )
    assert [one["file"] for one in said["unreadable"]] == [str(damaged / "b.jpg"), str(damaged / "d.png")]
    assert all(one["reason"] for one in said["unreadable"])
    assert call("predict", pictures_run, damaged, "--json")[1] == out


def test_names_with_line_ends_commas_and_bytes_that_are_no_text(pictures, pictures_run, tmp_path, call):
    names = ["a,b.png", 'q"\nx.png', "b\udcff.png"]
    for name in names:
        shutil.copy(pictures / "test/red/0.png", tmp_path / name)
    files = [str(tmp_path / name) for name in names]
    code, out, err = call("predict", pictures_run, *files)
    assert (code, err, len(out.splitlines())) == (0, "", 4)
    assert "\\n" in out
    assert "\\udcff" in out
    out = call("predict", pictures_run, *files, "--format", "csv")[1]
    assert [row["file"] for row in csv.DictReader(io.StringIO(out))] == [*files[:2], str(tmp_path / "b\\udcff.png")]


def test_the_data_of_the_run_are_not_needed(pictures, pictures_run, monkeypatch):
    expected = list(predict(opened(pictures_run), [str(pictures / "test/red/0.png")]))
    monkeypatch.setattr(registry, "read", lambda *words, **rest: pytest.fail("read the data"))
    assert list(predict(opened(pictures_run), [str(pictures / "test/red/0.png")])) == expected


def test_a_run_that_kept_nothing_about_its_images_asks_its_data(pictures, pictures_run, tmp_path):
    run = shutil.copytree(pictures_run, tmp_path / "run")
    (run / "inputs.json").unlink()
    file = [str(pictures / "test/red/0.png")]
    assert opened(run).inputs == opened(pictures_run).inputs
    assert list(predict(opened(run), file)) == list(predict(opened(pictures_run), file))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"shape": [3, 2, 2], "mean": [1, 2], "std": 1, "classes": []}'])
def test_damaged_words_about_the_images_are_one_line(pictures, pictures_run, tmp_path, call, text):
    run = shutil.copytree(pictures_run, tmp_path / "run")
    (run / "inputs.json").write_text(text)
    code, out, err = call("predict", run, pictures / "test")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{run}/inputs.json is damaged" in err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["RUN", "EMPTY"], "there is no image in the folder"),
        (["RUN"], "Missing argument 'FILE...'"),
        (["nowhere", "EMPTY/a.png"], "there is no run folder 'nowhere'"),
        (["a=b", "EMPTY/a.png"], "predict takes the folder of a run first"),
        (["RUN", "EMPTY/a.png", "--format", "xml"], "'xml' is not one of"),
    ],
)
def test_mistakes_in_one_line(pictures_run, tmp_path, call, words, answer):
    given = [word.replace("RUN", str(pictures_run)).replace("EMPTY", str(tmp_path)) for word in words]
    code, out, err = call("predict", *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert answer in err


def test_images_are_covered_and_cut_as_the_readers_do_it():
    rows = np.arange(20, dtype=np.uint8)[:, None].repeat(30, 1)
    wide = Image.fromarray(rows.T.copy())  # 20 wide, 30 high, grey levels from left to right
    assert np.asarray(covering(wide, 30, 10)).tolist() == [list(range(5, 15))] * 30
    assert covering(wide, 7, 40).size == (40, 7)
    assert covering(wide, 1, 1).size == (1, 1)


def test_data_that_no_file_can_become_are_refused(digits_run):
    _, parts = opened_with_data(digits_run)
    object.__setattr__(parts, "test_transform", lambda batch, **rest: batch)
    with pytest.raises(DataError, match="how a file becomes an input of this model is not known"):
        inputs_of(parts)
    object.__setattr__(parts, "test_transform", None)  # raw bytes of another range
    with pytest.raises(DataError, match="is not known"):
        inputs_of(parts)
    with pytest.raises(DataError, match="images of 2 channels"):
        _ = Inputs((2, 4, 4), 0.0, 1.0, ("a", "b")).mode
