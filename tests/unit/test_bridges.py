"""The loops of docs/bridges.md, each where the package it is about is installed."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import wholebatch as wb

PAGE = Path(__file__).parents[2] / "docs" / "bridges.md"
SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PACKAGES = {
    "Accelerate": "accelerate",
    "Lightning Fabric": "lightning",
    "DistributedDataParallel": "torch",
    "Hugging Face models": "transformers",
    "timm models": "timm",
}


def sections() -> dict[str, str]:
    return {found[1]: "\n".join(BLOCK.findall(found[2])) for found in SECTION.finditer(PAGE.read_text("utf-8"))}


def test_every_section_is_run() -> None:
    assert set(sections()) == set(PACKAGES)


@pytest.fixture(autouse=True)
def environment_given_back() -> Iterator[None]:
    """Some packages set environment variables when they are imported."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def torchvision_operators() -> Any:
    """Torchvision's registry build beside a CPU build of torch: its Python half imports if two operators are named."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@pytest.mark.filterwarnings("ignore")  # what other packages warn of is their own affair
@pytest.mark.parametrize("name", [name for name in PACKAGES if name != "DistributedDataParallel"])
def test_the_loop_is_exact(name: str, torchvision_operators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PACKAGES[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra: bridges)")
    setup = BLOCK.search(PAGE.read_text("utf-8"))
    assert setup is not None
    names: dict[str, Any] = {"__name__": "bridges"}
    exec(compile(setup[1], str(PAGE), "exec"), names)
    checks: list[wb.StepCheck] = []
    original = wb.check_step
    monkeypatch.setattr(wb, "check_step", lambda *a, **k: checks.append(original(*a, **k)) or checks[-1])
    exec(compile(sections()[name], str(PAGE), "exec"), names)
    assert len(checks) == 1
    compared = [case for case in checks[0].cases if case.error == case.error]
    assert len(compared) >= 7, checks[0]
    limit = 1e-6 if package == "transformers" else 1e-12
    assert max(case.error for case in compared) < limit, checks[0]
