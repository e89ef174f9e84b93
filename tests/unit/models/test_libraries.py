"""The real timm and torchvision, where they are installed.

Beside a CPU build of torch the registry's torchvision does not import: its operators are built for CUDA. The models
need none of them, so the two that its import asks for are declared (and never run) in the process of this test. That
is a test of our side of these libraries, not a repair.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

CODE = """
import json, sys, warnings
import torch
warnings.simplefilter("ignore")
if "declare" in sys.argv:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from wholebatch import models
from wholebatch.core.errors import ConfigError
from wholebatch.data import by_path

said = {}
def error(name, **options):
    try:
        models.build(name, **options)
    except ConfigError as caught:
        said[f"{name} {options}"] = str(caught)
def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])

for name in ("timm:resnet18", "torchvision:resnet18"):
    try:
        first = models.build(name, num_classes=7, image_size=32, in_channels=3, seed=1)
    except ConfigError as caught:
        said[name] = str(caught)
        continue
    again = models.build(name, num_classes=7, image_size=32, in_channels=3, seed=1)
    said[name] = list(first.eval()(torch.zeros(2, 3, 32, 32)).shape), bool(torch.equal(flat(first), flat(again)))
    error(name + "x")
    error(name, pretrained=True)
    error(name, nonsense=1)
if "declare" in sys.argv:
    with torch.device("meta"):
        both = [models.build(name) for name in ("timm:resnet50", "torchvision:resnet50")]
        said["cost"] = [models.cost(model, (3, 224, 224)).__dict__ for model in both]
    images = torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8)
    augment = by_path("torchvision.transforms.v2:RandAugment", num_ops=2)
    place = {"seed": 0, "epoch": 1}
    whole = augment(images, indices=torch.arange(9), **place)
    parts = [augment(images[p], indices=p, **place) for p in torch.arange(9).split(2)]
    said["augment"] = bool(torch.equal(whole, torch.cat(parts))), bool((whole != images).any())
print(json.dumps(said))
"""


def answers(*flags: str) -> dict[str, object]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", CODE, *flags], capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.fixture(autouse=True)
def _installed():
    for name in ("timm", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed (extra '{name}')")


def test_with_the_operators_declared():
    said = answers("declare")
    for name in ("timm:resnet18", "torchvision:resnet18"):
        assert said[name] == [[2, 7], True]
        assert "did you mean 'resnet18'" in str(said[f"{name}x {{}}"])
        assert "could not be fetched" in str(said[f"{name} {{'pretrained': True}}"])
        assert "nonsense" in str(said[f"{name} {{'nonsense': 1}}"])
    assert said["cost"] == [{"parameters": 25_557_032, "multiply_adds": 4_089_184_256}] * 2  # 25.6 million, 4.1 billion
    assert said["augment"] == [True, True]


def test_as_they_are_installed():
    """They work, or one line names both builds."""
    said = answers()
    for name in ("timm:resnet18", "torchvision:resnet18"):
        assert said[name] == [[2, 7], True] or "was built for another torch than the" in str(said[name])
