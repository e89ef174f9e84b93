"""What precision=auto and channels_last=auto come to, and that a layout changes rounding alone."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from wholebatch import models, runs
from wholebatch.config import arithmetic, load, load_run
from wholebatch.config.build import build


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_computes_with_it(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert arithmetic.precision(load(overrides=["precision=auto", "device=cpu"])) == expected
    assert arithmetic.precision(load(overrides=["precision=bf16", "device=cpu"])) == "bf16"
    assert arithmetic.precision(load(overrides=["device=cpu"])) == "fp32"
    assert arithmetic.precision(load(overrides=["precision=auto", "device=mps"])) == "fp32"


@pytest.mark.parametrize("native", [True, False])
def test_auto_asks_the_gpu_where_there_is_one(native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not native})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    for device in ("auto", "cuda:1"):
        config = load(overrides=["precision=auto", f"device={device}"])
        assert arithmetic.precision(config) == ("bf16" if native else "fp32")


@pytest.mark.parametrize(
    ("model", "norm", "expected"),
    [("resnet20", "batch", True), ("resnet20", "none", True), ("resnet20", "group", False), ("lenet", None, True)],
)
def test_auto_lays_out_convolutions_without_group_norm(model, norm, expected):
    made = models.build(model, **({} if norm is None else {"norm": norm}))
    assert arithmetic.channels_last(load(overrides=["channels_last=auto"]), made) is expected
    assert arithmetic.channels_last(load(overrides=["channels_last=true"]), made) is True
    assert arithmetic.channels_last(load(overrides=["channels_last=false"]), made) is False
    assert arithmetic.channels_last(load(), made) is False


def test_auto_leaves_linear_layers_alone():
    assert arithmetic.channels_last(load(overrides=["channels_last=auto"]), models.build("mlp")) is False


def digits(*words):
    few = ["epochs=2", "precision=fp32", "model.dropout=0.3", *words]
    return load(overrides=few)


def test_the_layout_changes_rounding_alone_dropout_included(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for layout in (True, False):
        parts = build(digits(f"channels_last={str(layout).lower()}"))
        weights = [weight for weight in parts.model.parameters() if weight.ndim == 4 and weight.shape[1] > 1]
        assert {weight.is_contiguous(memory_format=torch.channels_last) for weight in weights} == {layout}
        assert parts.channels_last is layout
    losses = []
    for layout in ("true", "false"):
        history = runs.train_recipe(digits(f"channels_last={layout}", f"run_dir={layout}"), stream=io.StringIO())
        losses.append([record["loss"] for record in history.records])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)


def test_a_run_keeps_what_auto_came_to_and_goes_on_as_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    words = ["precision=auto", "channels_last=true", "epochs=2", "lr=0.001", "device=cpu"]
    whole = runs.train_recipe(load(overrides=[*words, "run_dir=whole"]), stream=io.StringIO())
    part = load(overrides=[*words, "run_dir=part", "time_limit=0.001"])
    stopped = runs.train_recipe(part, stream=io.StringIO())
    assert max(record["step"] for record in stopped.records or [{"step": 0}]) < 6
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    kept = load_run(Path("part"), ["time_limit=null"])
    assert (kept.precision, kept.channels_last) == ("fp32", True)
    again = runs.train_recipe(kept, resume=Path("part"), stream=io.StringIO())
    assert again.last("train")["loss"] == whole.last("train")["loss"]
    assert again.last("test")["loss"] == whole.last("test")["loss"]
