"""``wholebatch export``: what is written is loaded back and compared, or not kept."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from wholebatch import saved
from wholebatch.core.errors import InputError
from wholebatch.trained import export as exporting
from wholebatch.trained.inputs import Inputs
from wholebatch.trained.opening import opened

safetensors = pytest.importorskip("safetensors.torch", reason="safetensors (extra: export) is not installed")


class Tied(nn.Module):
    """Two names of one weight."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(64, 64)
        self.two = nn.Linear(64, 64, bias=False)
        self.two.weight = self.one.weight
        self.register_buffer("shift", torch.ones(64))

    def forward(self, images):
        return self.two(self.one(images.flatten(1)).relu()) + self.shift


class Unfollowable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(64, 10)

    def forward(self, images):
        out = self.body(images.flatten(1))
        return out if float(out.sum()) > 0 else -out


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_both_files_stand_alone_and_give_the_models_outputs(digits_run, tmp_path, call):
    run = tmp_path / "run"
    run.symlink_to(digits_run)
    code, out, err = call("export", run, "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{tmp_path}/out/model.safetensors", f"{tmp_path}/out/model.pt2"]
    assert all(float(line.split()[-1]) < 1e-5 for line in lines)
    assert names(tmp_path / "out") == ["inputs.json", "model.pt2", "model.safetensors"]
    assert (tmp_path / "out/model.safetensors").stat().st_mode == (tmp_path / "out/model.pt2").stat().st_mode
    weights = safetensors.load_file(tmp_path / "out/model.safetensors")
    kept = saved.newest(digits_run)
    assert set(weights) == set(kept)
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    inputs = Inputs.from_json((tmp_path / "out/inputs.json").read_text(), "inputs.json")
    assert inputs == opened(digits_run).inputs
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    model = opened(digits_run).model
    for size in (1, 5, 40):  # not those that were compared
        batch = torch.randn(size, *inputs.shape)
        assert torch.allclose(program(batch), model(batch), rtol=1e-5, atol=1e-6)


def test_weights_of_two_names_are_kept(digits_run, tmp_path, monkeypatch):
    run = replace(opened(digits_run), model=Tied())
    monkeypatch.setattr(exporting, "make_model", lambda *words: Tied())
    first = next(exporting.export(run, tmp_path))
    assert first.difference == 0
    assert {"one.bias", "shift"} < set(safetensors.load_file(first.place))


def test_a_file_that_gives_other_outputs_is_not_kept(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "load_model", lambda model, file: None)
    with pytest.raises(InputError, match=r"model\.safetensors, loaded back, gives outputs that differ by"):
        list(exporting.export(opened(digits_run), tmp_path))
    assert names(tmp_path) == []


@pytest.mark.parametrize("spoiled", [8, 3])
def test_a_file_that_gives_nan_in_one_batch_is_not_kept(digits_run, tmp_path, monkeypatch, spoiled):
    whole = safetensors.load_model

    def load(model, file):
        whole(model, file)
        model.register_forward_hook(lambda model, given, out: out * torch.nan if len(out) == spoiled else None)

    monkeypatch.setattr(safetensors, "load_model", load)
    with pytest.raises(InputError, match="differ by nan"):
        list(exporting.export(opened(digits_run), tmp_path))


def test_a_model_that_torch_cannot_follow_leaves_no_program(digits_run, tmp_path, monkeypatch):
    run = replace(opened(digits_run), model=Unfollowable())
    monkeypatch.setattr(exporting, "make_model", lambda *words: Unfollowable())
    with pytest.raises(InputError, match=r"torch\.export cannot follow the model small_cnn"):
        list(exporting.export(run, tmp_path))
    assert names(tmp_path) == ["model.safetensors"]


def test_without_the_extra_one_line_names_it(digits_run, tmp_path, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, out, err = call("export", digits_run, "-o", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err == "wholebatch: safetensors is not installed: pip install 'wholebatch[export]'\n"
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written(digits_run, tmp_path, call):
    (tmp_path / "file").write_text("mine")
    code, out, err = call("export", digits_run, "-o", tmp_path / "file")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "choose another with -o FOLDER" in err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.safetensors").mkdir()
    code, out, err = call("export", digits_run, "-o", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert names(tmp_path / "out") == ["model.safetensors"]


def test_the_weights_say_how_images_come_to_them(digits_run, tmp_path):
    first = next(exporting.export(opened(digits_run), tmp_path))
    from safetensors import safe_open

    with safe_open(first.place, "pt") as file:
        said = file.metadata()
    assert said["model"] == "small_cnn"
    assert json.loads(said["inputs"])["shape"] == [1, 8, 8]
