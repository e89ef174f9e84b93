"""Two small runs that all tests of this folder share, and the command line in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wholebatch import config, runs
from wholebatch.cli.main import main

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def _trained(folder: Path, *words: str) -> Path:
    """Train with one thread: small tensors, and more would only wait for each other."""
    given = [f"run_dir={folder}", "schedule=constant", *words]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs.train_recipe(config.load("digits", overrides=given), stream=io.StringIO())
    finally:
        torch.set_num_threads(threads)
    return folder


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    return _trained(tmp_path_factory.mktemp("digits") / "run", "epochs=2")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Noisy pictures of three colours, of many sizes, some of them grey or with a palette, in train and test."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 5)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(9, 40, 2)
                pixels = np.clip(colour + rng.normal(0, 70, (height, width, 3)), 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels)
                image = image.convert("L") if number == 3 else image.quantize(16) if number == 4 else image
                image.save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def pictures_run(pictures, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WHOLEBATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        words = ["data=folder", f"data.root={pictures}", "data.size=12", "data.augment=null", "model=mlp"]
        return _trained(tmp_path_factory.mktemp("pictures-run") / "run", *words, "epochs=4", "batch_size=8")


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; gives (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run
