"""Folders of pictures and a cache folder of their own for the tests of data."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for cifar_files


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test reads or writes the user's cache folder, nor finds the user's data."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("WHOLEBATCH_CACHE", str(folder))
    monkeypatch.delenv("WHOLEBATCH_DATA", raising=False)
    return folder


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    """Gives a picture of random pixels that depend on its number."""

    def make(number: int, width: int = 8, height: int = 6, mode: str = "RGB") -> Image.Image:
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels).convert(mode)

    return make


@pytest.fixture
def folder(tmp_path, picture) -> Path:
    """Three classes of 5, 10 and 2 pictures, all 8 × 6, PNG."""
    number = 0
    for name, count in (("ant", 5), ("bee", 10), ("cow", 2)):
        for place in range(count):
            file = tmp_path / "insects" / name / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(file)
            number += 1
    return tmp_path / "insects"
