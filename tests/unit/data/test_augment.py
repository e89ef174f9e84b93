import math

import pytest
import torch
from torch.nn import functional as F

from wholebatch.core.errors import DataError
from wholebatch.data import BatchLoader, Compose, Normalize, ShiftRotate, digits

IMAGES = digits("train").inputs


def augmented(micro_batch, transform=None, device=None, images=IMAGES, seed=3, epoch=0):
    """All augmented images, by sample."""
    transform = transform or Compose(ShiftRotate(1.0, 12.0, 0.1), Normalize(0.3, 0.4, 1 / 16))
    loader = BatchLoader((images, torch.arange(len(images))), 512, seed=seed, transform=transform)
    loader.load_state_dict({"epoch": epoch, "consumed": 0})
    new = torch.empty(images.shape)
    for window in loader.windows(micro_batch, device=device):
        for inputs, numbers in window:
            new[numbers.cpu()] = inputs.cpu()
    return new


@pytest.mark.parametrize("micro_batch", [1, 7, 64, 128])
def test_the_micro_batch_changes_no_bit(micro_batch):
    assert torch.equal(augmented(micro_batch), augmented(None))


def test_odd_and_colour_images_to_the_bit():
    images = torch.rand(60, 3, 13, 9, generator=torch.Generator().manual_seed(0))
    transform = Compose(ShiftRotate(2.0, 30.0, 0.2), Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 1.0))
    assert torch.equal(augmented(7, transform, images=images), augmented(None, transform, images=images))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_the_micro_batch_changes_no_bit_on_an_accelerator():
    whole = augmented(None, device="cuda")
    for micro_batch in (1, 7, 64):
        assert torch.equal(augmented(micro_batch, device="cuda"), whole)
    torch.testing.assert_close(whole, augmented(None), atol=1e-4, rtol=1e-4)


def test_draws_follow_seed_epoch_and_sample():
    one = IMAGES[:1].expand(64, -1, -1, -1)
    transform = ShiftRotate()
    first = augmented(None, transform, images=one)
    assert torch.equal(first, augmented(None, transform, images=one))
    others = [augmented(None, transform, images=one, seed=4), augmented(None, transform, images=one, epoch=1)]
    for new in (*others, first.roll(1, 0)):
        assert (new != first).flatten(1).any(1).all()


def test_whole_pixels_shift_exactly():
    draws = torch.tensor([[1.0, 0.5, 0.5, 0.5], [0.5, 0.0, 0.5, 0.5]])
    right, up = ShiftRotate(max_shift=2.0, max_degrees=0.0).apply(IMAGES[:2], draws)
    images = IMAGES[:2].float()
    assert torch.equal(right[..., 2:], images[0, ..., :-2])
    assert not right[..., :2].any()
    assert torch.equal(up[:, :-2], images[1][:, 2:])
    assert not up[:, -2:].any()


def test_amounts_are_those_of_torchs_affine_grid():
    """Against affine_grid in float64 on images that are not square."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(50, 2, 12, 20, dtype=torch.float64, generator=generator)
    draws = torch.rand(50, 4, generator=generator)
    got = ShiftRotate(3.0, 40.0, 0.3).apply(images, draws)
    x, y, turn, size = draws.double().unbind(1)
    angle, scale = (2 * turn - 1) * math.radians(40), 1 + (2 * size - 1) * 0.3
    cos, sin = angle.cos() / scale, angle.sin() / scale
    rows = [cos, sin * 12 / 20, -(2 * x - 1) * 3 * 2 / 20, -sin * 20 / 12, cos, -(2 * y - 1) * 3 * 2 / 12]
    theta = torch.stack(rows, 1).view(50, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)
    assert (got - expected).abs().max() < 5e-3  # the table's steps are 40/2048 degrees


def test_quarter_turn():
    images = torch.rand(1, 1, 9, 9)
    turned = ShiftRotate(0.0, 90.0).apply(images, torch.tensor([[0.5, 0.5, 0.99999, 0.5]]))
    torch.testing.assert_close(turned, images.rot90(-1, (2, 3)), atol=0.02, rtol=0)


def test_nothing_asked_nothing_done():
    new = ShiftRotate(0.0, 0.0)(IMAGES[:5], seed=0, epoch=0, indices=torch.arange(5))
    assert torch.equal(new, IMAGES[:5].float())


@pytest.mark.parametrize("options", [{"max_shift": -1}, {"max_degrees": math.nan}, {"max_scale": 1.0}])
def test_impossible_amounts(options):
    with pytest.raises(DataError, match=next(iter(options))):
        ShiftRotate(**options)


def test_images_of_another_shape():
    with pytest.raises(DataError, match=r"got \(5, 64\)"):
        ShiftRotate()(torch.zeros(5, 64), seed=0, epoch=0, indices=torch.arange(5))
