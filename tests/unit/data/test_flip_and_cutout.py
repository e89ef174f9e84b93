import pytest
import torch

from wholebatch.core.errors import DataError
from wholebatch.data import Cutout, HorizontalFlip

IMAGES = torch.randint(1, 256, (400, 2, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
PLACE = {"seed": 0, "epoch": 0, "indices": torch.arange(400)}


def test_flips_mirror_about_half_of_the_images():
    draws = torch.rand(400, 1)
    new = HorizontalFlip(0.3).apply(IMAGES, draws)
    for image, before, draw in zip(new, IMAGES, draws[:, 0].tolist(), strict=True):
        assert torch.equal(image, before.flip(2) if draw < 0.3 else before)
    assert torch.equal(HorizontalFlip(0.0)(IMAGES, **PLACE), IMAGES)
    assert torch.equal(HorizontalFlip(1.0)(IMAGES, **PLACE), IMAGES.flip(3))
    assert 150 < (HorizontalFlip()(IMAGES, **PLACE) != IMAGES).flatten(1).any(1).sum() < 250


@pytest.mark.parametrize("size", [1, 4, 5, 30])
def test_a_square_about_the_middle_is_covered(size):
    draws = torch.rand(400, 2)
    new = Cutout(size, fill=0).apply(IMAGES, draws)
    for image, before, (y, x) in zip(new, IMAGES, draws.tolist(), strict=True):
        expected = before.clone()
        top, left = int(y * 7) - size // 2, int(x * 9) - size // 2
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
        assert torch.equal(image, expected)
    assert (Cutout(3, fill=9).apply(IMAGES, draws) == 9).any()


def test_refusals():
    with pytest.raises(DataError, match=r"from 0 to 1, got 1\.5"):
        HorizontalFlip(1.5)
    with pytest.raises(DataError, match="at least 1 pixel, got 0"):
        Cutout(0)
