import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wholebatch.core.errors import DataError
from wholebatch.data import RandomCrop, RandomResizedCrop
from wholebatch.data.crop import resized

BYTES = torch.randint(0, 256, (300, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NUMBERS = torch.arange(300)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_each_crop_is_a_window_of_the_padded_image(mode):
    draws = torch.rand(300, 2)
    new = RandomCrop(padding=3, mode=mode, fill=7).apply(BYTES, draws)
    options = {"constant_values": 7} if mode == "constant" else {}
    padded = np.pad(BYTES.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode=mode, **options)
    for image, whole, (y, x) in zip(new, padded, (draws * 7).int().tolist(), strict=True):
        assert np.array_equal(image.numpy(), whole[:, y : y + 12, x : x + 10])
    assert new.dtype == torch.uint8


def test_every_place_is_as_likely():
    places = torch.arange(10000)
    images = torch.arange(6 * 6, dtype=torch.uint8).view(1, 1, 6, 6).expand(10000, -1, -1, -1)
    corner = RandomCrop(size=(4, 3), padding=0)(images, seed=0, epoch=0, indices=places)[:, 0, 0, 0]
    rows, columns = corner // 6, corner % 6
    assert rows.bincount().tolist() == pytest.approx([3333] * 3, abs=200)
    assert columns.bincount().tolist() == pytest.approx([2500] * 4, abs=200)
    assert abs(torch.corrcoef(torch.stack([rows, columns]).float())[0, 1]) < 0.05


@pytest.mark.parametrize("size", [(12, 10), (5, 8), (20, 30)])
def test_resized_boxes_are_those_of_interpolate(size):
    """Where nothing is averaged: cut the box, bring it to its size with torch's own function, in float64."""
    crop = RandomResizedCrop(size)
    boxes = crop.boxes(torch.rand(300, 40), 12, 10)
    images = BYTES.double()
    times = max(1, round(max(12 / size[0], 10 / size[1])))
    big = (size[0] * times, size[1] * times)
    new = resized(images, boxes, *size)
    for number, (y, x, height, width) in enumerate(boxes.tolist()):
        box = images[number : number + 1, :, y : y + height, x : x + width]
        expected = F.interpolate(box, big, mode="bilinear", align_corners=False)
        expected = F.avg_pool2d(expected, times)[0]
        torch.testing.assert_close(new[number], expected, atol=1e-9, rtol=1e-9)
    as_bytes = resized(BYTES, boxes, *size)
    assert as_bytes.dtype == torch.uint8
    assert (as_bytes.double() - new).abs().max() < 0.501
    assert as_bytes.shape == (300, 3, *size)


def test_boxes_have_the_areas_and_ratios_asked_for():
    crop = RandomResizedCrop(scale=(0.2, 0.6), ratio=(0.5, 2.0))
    top, left, height, width = crop.boxes(torch.rand(20000, 40), 200, 300).double().unbind(1)
    assert top.min() == 0
    assert left.min() == 0
    assert (top + height).max() == 200
    assert (left + width).max() == 300
    area, ratio = height * width / 60000, (width / height).log()
    assert area.min() > 0.195
    assert area.max() < 0.605
    assert ratio.abs().max() < math.log(2.05)
    low = area < 0.3  # where (nearly) every first window fits, the logarithm of the ratio is uniform
    assert ratio[low].mean() == pytest.approx(0, abs=0.03)
    assert ratio[low].std() == pytest.approx(2 * math.log(2) / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize(
    ("ratio", "box"), [((3.0, 4.0), [4, 0, 3, 10]), ((0.1, 0.1), [0, 4, 12, 1]), ((0.7, 0.9), [0, 0, 12, 10])]
)
def test_where_no_window_fits_the_largest_in_the_middle_is_taken(ratio, box):
    crop = RandomResizedCrop(scale=(1.0, 1.0), ratio=ratio)
    draws = torch.rand(5, 40)
    draws[:, 1::4] = 0.01  # ratios at the lower end, too wide or too tall in all ten tries
    assert crop.boxes(draws, 12, 10).tolist() == [box] * 5


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: RandomCrop(padding=-1), "0 or more; got -1"),
        (lambda: RandomCrop(mode="edge"), "'constant' or 'reflect', got 'edge'"),
        (lambda: RandomCrop(size=(3, 0)), r"\(height, width\); got \(3, 0\)"),
        (lambda: RandomCrop(99).apply(BYTES, torch.rand(300, 2)), "cannot cut 99 x 99 pixels out of images of 12 x 10"),
        (lambda: RandomCrop(padding=10, mode="reflect").apply(BYTES, torch.rand(300, 2)), "cannot mirror 10 pixels"),
        (lambda: RandomResizedCrop(scale=(0, 1)), r"in \(0, 1\]; got \(0, 1\)"),
        (lambda: RandomResizedCrop(scale=(0.5, 0.4)), "scale="),
        (lambda: RandomResizedCrop(ratio=(2, 1)), "ratio="),
    ],
)
def test_refusals(make, answer):
    with pytest.raises(DataError, match=answer):
        make()
