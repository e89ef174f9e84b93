"""``wholebatch evaluate``: over all samples, by class, as a picture and as JSON."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch

from wholebatch.cli.evaluate import _table
from wholebatch.data import digits
from wholebatch.display import read_history
from wholebatch.sums import Accuracy
from wholebatch.trained.evaluation import Evaluation, OfClass, _by_class, evaluate
from wholebatch.trained.opening import opened


def by_hand(run):
    """(true, predicted, rank of the true class) of every test sample, counted without this library's sums."""
    model, test = opened(run), digits("test")
    with torch.no_grad():
        outputs = model.model(test.transform((test.inputs, test.targets), seed=0, epoch=0, indices=None)[0])
    ranks = [int((row > row[true]).sum()) for row, true in zip(outputs, test.targets, strict=True)]
    return list(zip(test.targets.tolist(), outputs.argmax(1).tolist(), ranks, strict=True))


def test_every_number_is_that_of_counting_by_hand(digits_run):
    found, rows = evaluate(digits_run), by_hand(digits_run)
    last = read_history(digits_run).last("test")
    assert (found.values["loss"], found.values["accuracy"]) == (last["loss"], last["accuracy"])
    assert 0.2 < found.values["accuracy"] < 1  # there are mistakes to count
    assert found.values["accuracy"] == sum(true == said for true, said, _ in rows) / 360
    assert found.values["top5"] == sum(rank < 5 for *_, rank in rows) / 360
    assert found.values["accuracy"] < found.values["top5"] < 1
    assert list(found.values) == ["loss", "accuracy", "top5", "samples"]
    for number, one in enumerate(found.classes):
        of_class = [said for true, said, _ in rows if true == number]
        counts = [of_class.count(other) for other in range(10)]
        assert found.confusion[number].tolist() == counts
        assert (one.name, one.samples, one.accuracy) == (str(number), len(of_class), counts[number] / len(of_class))
        counts[number] = 0
        assert (one.times, one.taken_for) == (max(counts), str(counts.index(max(counts))) if any(counts) else None)
    assert found.balanced == pytest.approx(sum(one.accuracy for one in found.classes) / 10, rel=1e-12)


def test_the_command_prints_a_table_and_writes_a_picture_and_json(digits_run, tmp_path, call):
    run = shutil.copytree(digits_run, tmp_path / "run")
    code, out, err = call("evaluate", run)
    assert (code, err) == (0, "")
    overall, table, written = out.split("\n\n")
    found = evaluate(run)
    assert overall.splitlines() == [f"{name} {value:.6g}" for name, value in found.values.items()]
    head, *rows = table.splitlines()
    assert head.split()[:3] == ["class", "samples", "accuracy"]
    assert [row.split()[:3] for row in rows] == [[c.name, str(c.samples), f"{c.accuracy:.4f}"] for c in found.classes]
    assert "\x1b" not in out
    assert written == f"written: {run}/evaluation.json, {run}/confusion.png\n"
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["confusion"] == found.confusion.tolist()
    assert [one["accuracy"] for one in kept["classes"]] == [one.accuracy for one in found.classes]
    assert (kept["loss"], kept["samples"], kept["top5"]) == (found.values["loss"], 360, found.values["top5"])


def test_json_alone_is_printed_for_programs_and_the_files_go_where_o_says(digits_run, tmp_path, call):
    before = sorted(path.name for path in digits_run.iterdir())
    code, out, err = call("evaluate", digits_run, "batch_size=64", "--json", "-o", tmp_path / "new" / "folder")
    assert (code, err) == (0, "")
    assert json.loads(out)["overrides"] == ["batch_size=64"]
    assert (tmp_path / "new/folder/evaluation.json").read_text() == out
    assert (tmp_path / "new/folder/confusion.png").is_file()
    assert sorted(path.name for path in digits_run.iterdir()) == before


def test_a_place_that_cannot_be_written_is_told_after_the_numbers(digits_run, tmp_path, call):
    (tmp_path / "file").write_text("mine")
    code, out, err = call("evaluate", digits_run, "-o", tmp_path / "file")
    assert code == 2
    assert out.startswith("loss ")
    assert err.count("\n") == 1
    assert "choose a folder with -o FOLDER" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_five_guesses_of_three_classes_say_nothing(pictures_run):
    found = evaluate(pictures_run)
    assert list(found.values) == ["loss", "accuracy", "samples"]
    assert [one.name for one in found.classes] == ["blue", "green", "red"]


def test_a_class_without_samples_has_no_accuracy():
    accuracy = Accuracy(3)
    accuracy.add(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    classes = _by_class(accuracy, accuracy.confusion, ("a", "b", "c"))
    assert classes[:2] == (OfClass("a", 2, 0.5, "b", 1), OfClass("b", 1, 1.0, None, 0))
    assert (classes[2].samples, math.isnan(classes[2].accuracy), classes[2].taken_for) == (0, True, None)
    values = {"loss": math.nan, "accuracy": 2 / 3, "samples": 3.0}
    whole = Evaluation("run", "data", (), values, 0.75, classes, None)
    kept = json.loads(whole.to_json(), parse_constant=pytest.fail)  # no NaN, which is no JSON
    assert (kept["loss"], kept["classes"][2]["accuracy"], "confusion" in kept) == (None, None, False)
    assert _table(classes)[3].split() == ["c", "0", "-"]


def test_rows_with_a_nan_count_as_samples_of_their_class():
    accuracy = Accuracy(2)
    accuracy.add(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert accuracy.per_class_count.tolist() == [2, 0]
    assert accuracy.confusion.sum(1).tolist() == [1, 0]


def test_of_many_classes_the_worst_are_shown():
    some = tuple(OfClass(f"c{i}", 10, (i * 7 % 30) / 30, None, 0) for i in range(30))
    lines = _table((*some, OfClass("none", 0, math.nan, None, 0)))
    assert lines[0] == "the 10 classes of lowest accuracy, of 31; evaluation.json has all:"
    assert [float(line.split()[2]) for line in lines[2:]] == pytest.approx([i / 30 for i in range(10)], abs=1e-4)
    assert len(_table(some[:20])) == 21
