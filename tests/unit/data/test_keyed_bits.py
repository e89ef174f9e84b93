"""The same sample gets the same bits, whatever is beside it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from wholebatch.core.errors import DataError
from wholebatch.data import (
    BatchLoader,
    ColorJitter,
    Compose,
    CutMix,
    Cutout,
    HorizontalFlip,
    Mix,
    MixUp,
    Normalize,
    PerSample,
    RandomCrop,
    RandomResizedCrop,
    ShiftRotate,
)


def noise(image):
    """Draws from all three global generators."""
    return image.float() + torch.rand(1) + np.random.rand() + random.random()


EVERY = Compose(
    RandomResizedCrop(),
    RandomCrop(padding=3, mode="reflect"),
    HorizontalFlip(),
    PerSample(noise),
    ColorJitter(0.4, 0.4, 0.4, 0.1),
    ShiftRotate(),
    Cutout(5),
    Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
)
TRANSFORMS = {
    "crop": RandomCrop(padding=4),
    "crop of a size": RandomCrop((9, 6), padding=0),
    "reflect": RandomCrop(padding=4, mode="reflect"),
    "resized": RandomResizedCrop(),
    "resized, smaller": RandomResizedCrop((5, 7)),
    "flip": HorizontalFlip(),
    "cutout": Cutout(6),
    "brightness": ColorJitter(brightness=0.8),
    "contrast": ColorJitter(contrast=0.8),
    "saturation": ColorJitter(saturation=0.8),
    "hue": ColorJitter(hue=0.5),
    "per sample": PerSample(noise),
    "normalize": Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
    "every one": EVERY,
}
SAMPLES = 67
BYTES = torch.randint(0, 256, (SAMPLES, 3, 13, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
NUMBERS = torch.arange(SAMPLES)


def made(transform, images=BYTES, numbers=NUMBERS, seed=3, epoch=2):
    return transform(images, seed=seed, epoch=epoch, indices=numbers)


@pytest.fixture(params=list(TRANSFORMS))
def transform(request):
    return TRANSFORMS[request.param]


@pytest.mark.parametrize("images", [BYTES, BYTES / 255, (BYTES / 255).double()], ids=["uint8", "float32", "float64"])
def test_in_any_company(transform, images):
    """Alone, in pieces of any size, in another order, and beside itself: the bits are those of the whole."""
    whole = made(transform, images)
    for size in (1, 2, 7, 32):
        pieces = [made(transform, images[part], part) for part in NUMBERS.split(size)]
        assert torch.equal(torch.cat(pieces), whole)
    order = torch.randperm(SAMPLES)
    assert torch.equal(made(transform, images[order], order), whole[order])
    twice = torch.tensor([5, 5, 66, 5])
    assert torch.equal(made(transform, images[twice], twice), whole[twice])


def test_in_any_memory(transform):
    """A view of a larger tensor, another layout of the axes and another number of threads change nothing."""
    whole = made(transform)
    wide = torch.zeros(SAMPLES, 3, 13, 40, dtype=torch.uint8)
    wide[..., 17:28] = BYTES
    assert torch.equal(made(transform, wide[..., 17:28]), whole)
    assert torch.equal(made(transform, BYTES.to(memory_format=torch.channels_last)), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(made(transform), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_input_stays_and_nothing_may_come(transform):
    images = BYTES.clone()
    new = made(transform, images)
    assert torch.equal(images, BYTES)
    none = made(transform, images[:0], NUMBERS[:0])
    assert none.shape == (0, *new.shape[1:]) or isinstance(transform, PerSample | Compose)
    assert len(none) == 0


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"normalize"}))
def test_draws_follow_seed_epoch_and_sample(name):
    transform = TRANSFORMS[name]
    one = BYTES[:1].expand(SAMPLES, -1, -1, -1)
    first = made(transform, one)
    assert torch.equal(first, made(transform, one))
    for other in (made(transform, one, seed=4), made(transform, one, epoch=3), first.roll(1, 0)):
        assert (other != first).flatten(1).any(1).float().mean() > 0.3  # a flip is the same half of the times


def test_kinds_of_transforms_do_not_draw_the_same():
    def drawn(kind):
        transform = kind()
        transform.apply = lambda images, draws: draws[:, :1]
        return made(transform)

    kinds = (RandomCrop, RandomResizedCrop, HorizontalFlip, Cutout, ColorJitter, ShiftRotate)
    table = torch.cat([drawn(kind) for kind in kinds], 1)
    assert torch.corrcoef(table.T).fill_diagonal_(0).abs().max() < 0.4
    assert len(torch.unique(table)) == table.numel()


@pytest.mark.parametrize("micro_batch", [1, 4, 7, None])
@pytest.mark.parametrize("mix", [None, MixUp(5), CutMix(5), Mix(5, 0.5, 1.0)], ids=["alone", "mixup", "cutmix", "both"])
def test_through_the_loader(micro_batch, mix):
    """Whole batches of 16 (the last has 3), augmented and mixed, by micro-batches and in one piece."""

    def batches(size):
        loader = BatchLoader((BYTES, NUMBERS % 5), 16, seed=1, transform=EVERY, mix=mix)
        loader.load_state_dict({"epoch": 2, "consumed": 0})
        return [list(window) for window in loader.windows(size)]

    for pieces, (whole,) in zip(batches(micro_batch), batches(None), strict=True):
        for part in (0, 1):
            assert torch.equal(torch.cat([piece[part] for piece in pieces]), whole[part])


class OneByOne:
    """The same images, in no memory that a loader could index."""

    def __len__(self):
        return len(BYTES)

    def __getitem__(self, number):
        return BYTES[number], int(NUMBERS[number]) % 5


@pytest.mark.parametrize("mix", [None, Mix(5, 0.5, 1.0)], ids=["alone", "both"])
def test_through_workers(mix):
    """Read by two other processes, in micro-batches, as in memory and in one piece."""

    def batches(data, size, workers):
        with BatchLoader(data, 16, seed=1, transform=EVERY, mix=mix, workers=workers) as loader:
            return [list(window) for window in loader.windows(size)]

    in_memory = batches((BYTES, NUMBERS % 5), None, 0)
    for pieces, (whole,) in zip(batches(OneByOne(), 5, 2), in_memory, strict=True):
        for part in (0, 1):
            assert torch.equal(torch.cat([piece[part] for piece in pieces]), whole[part])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_in_any_company_on_an_accelerator(transform):
    whole = made(transform, BYTES.cuda())
    assert torch.equal(torch.cat([made(transform, BYTES[part].cuda(), part) for part in NUMBERS.split(7)]), whole)


@pytest.mark.parametrize("kind", [RandomCrop, RandomResizedCrop, HorizontalFlip, Cutout, ColorJitter])
def test_images_have_four_axes_and_a_place(kind):
    with pytest.raises(DataError, match=rf"{kind.__name__} takes images .* got \(3, 4\)"):
        made(kind(), torch.zeros(3, 4), torch.arange(3))
    batch = made(kind(field="image"), {"image": BYTES, "label": NUMBERS})
    assert torch.equal(batch["image"], made(kind()))
    assert batch["label"] is NUMBERS
    assert repr(kind()).startswith(f"{kind.__name__}(")
    assert "field" not in repr(kind())
    assert " at 0x" not in repr(kind(field="image"))
