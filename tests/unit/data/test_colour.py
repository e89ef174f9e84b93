"""Against the definitions, written pixel by pixel with the standard library's colorsys."""

import colorsys
import math

import pytest
import torch

from wholebatch.core.errors import DataError
from wholebatch.data import ColorJitter

IMAGES = torch.randint(0, 256, (8, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
IMAGES[0] = 100  # no hue
IMAGES[1, 1:] = 0  # red
DRAWS = torch.rand(8, 4, generator=torch.Generator().manual_seed(2))


def grey(pixel):
    return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]


def by_hand(image, draw, brightness, contrast, saturation, hue, top):
    """One image as nested lists of (r, g, b)."""
    limit = lambda value: min(max(value, 0.0), top)  # noqa: E731
    share = lambda u, amount: max(0, 1 - amount) + u * (1 + amount - max(0, 1 - amount))  # noqa: E731
    pixels = [[float(value) for value in pixel] for pixel in image.flatten(1).T.tolist()]
    b, c, s = (share(u, amount) for u, amount in zip(draw, (brightness, contrast, saturation), strict=False))
    pixels = [[limit(value * b) for value in pixel] for pixel in pixels]
    mean = sum(map(grey, pixels)) / len(pixels)
    pixels = [[limit(value * c + mean * (1 - c)) for value in pixel] for pixel in pixels]
    pixels = [[limit(value * s + grey(pixel) * (1 - s)) for value in pixel] for pixel in pixels]
    turn, turned = (2 * draw[3] - 1) * hue, []
    for pixel in pixels:
        h, sat, v = colorsys.rgb_to_hsv(*(value / top for value in pixel))
        turned.append([value * top for value in colorsys.hsv_to_rgb((h + turn) % 1, sat, v)])
    return torch.tensor(turned, dtype=torch.float64).T.reshape(image.shape)


AMOUNTS = [(0.5, 0, 0, 0), (0, 1.5, 0, 0), (0, 0, 2.0, 0), (0, 0, 0, 0.5), (0.4, 0.4, 0.4, 0.1)]


@pytest.mark.parametrize("amounts", AMOUNTS)
@pytest.mark.parametrize("top", [255.0, 1.0])
def test_amounts_are_those_of_the_definitions(amounts, top):
    images = IMAGES.double() * (top / 255)
    new = ColorJitter(*amounts, top=top).apply(images, DRAWS)
    expected = torch.stack([by_hand(i, d, *amounts, top) for i, d in zip(images, DRAWS.tolist(), strict=True)])
    torch.testing.assert_close(new, expected, atol=2e-5 * top, rtol=0)  # the mean grey is rounded to 2^-16
    if top == 255:
        assert (ColorJitter(*amounts).apply(IMAGES, DRAWS).double() - expected).abs().max() < 0.51


def test_grey_images_have_neither_saturation_nor_hue():
    one = IMAGES[:, :1]
    assert torch.equal(ColorJitter(saturation=0.9, hue=0.5).apply(one, DRAWS), one)
    assert not torch.equal(ColorJitter(brightness=0.9).apply(one, DRAWS), one)
    assert not torch.equal(ColorJitter(contrast=0.9).apply(one, DRAWS), one)


def test_nothing_asked_nothing_done():
    assert torch.equal(ColorJitter().apply(IMAGES, DRAWS), IMAGES)
    still = torch.full((8, 4), 0.5)
    assert torch.equal(ColorJitter(1, 1, 1, 0.5).apply(IMAGES, still), IMAGES)


@pytest.mark.parametrize("options", [{"brightness": -1}, {"contrast": math.inf}, {"hue": 0.6}, {"top": 0}])
def test_refusals(options):
    with pytest.raises(DataError, match=next(iter(options))):
        ColorJitter(**options)


def test_the_mean_grey_of_a_large_image_has_no_order():
    """A sum of floats is cut among the threads where it is alone, and not where it is one of several."""
    images = torch.rand(12, 1, 300, 301, generator=torch.Generator().manual_seed(3))
    jitter, threads = ColorJitter(contrast=1.0, top=1.0), torch.get_num_threads()
    nothing_left = torch.zeros(12, 4)  # of the image itself: it becomes its mean
    try:
        torch.set_num_threads(2)
        whole = jitter.apply(images, nothing_left)
        alone = torch.cat([jitter.apply(images[n : n + 1], nothing_left[n : n + 1]) for n in range(12)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, alone)


def test_channels():
    with pytest.raises(DataError, match=r"1 or 3 channels, got \(8, 2, 5, 4\)"):
        ColorJitter(0.1).apply(IMAGES[:, :2], DRAWS)
