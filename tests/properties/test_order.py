import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wholebatch.core.cuts import bounds
from wholebatch.data import ArrayDataset, BatchLoader, ShiftRotate, epoch_order

SIZES = st.integers(1, 40)
SEEDS = st.integers(0, 2**40)


def make(samples, batch_size, seed, **options):
    inputs = torch.arange(samples, dtype=torch.float64).view(-1, 1)
    return BatchLoader(ArrayDataset(inputs, torch.arange(samples)), batch_size, seed=seed, **options)


def seen(batches):
    return [number for _, numbers in batches for number in numbers.tolist()]


@given(SIZES, st.integers(1, 50), SEEDS, st.booleans())
@settings(deadline=None, max_examples=60)
def test_an_epoch_sees_every_sample_once_in_the_epochs_order(samples, batch_size, seed, shuffle):
    loader = make(samples, batch_size, seed, shuffle=shuffle)
    for epoch in range(2):
        got = seen(loader)
        assert sorted(got) == list(range(samples))
        assert got == (epoch_order(samples, seed, epoch).tolist() if shuffle else list(range(samples)))


@given(SIZES, st.integers(1, 20), SEEDS, st.integers(0, 60), st.booleans())
@settings(deadline=None, max_examples=60)
def test_resuming_anywhere_gives_the_rest(samples, batch_size, seed, stop_after, drop_last):
    drop_last = drop_last and batch_size <= samples
    whole = make(samples, batch_size, seed, drop_last=drop_last)
    expected = [seen(whole) for _ in range(4)]
    loader = make(samples, batch_size, seed, drop_last=drop_last)
    got, batches = [[]], 0
    while loader.epoch < 4:
        for batch in loader:
            got[-1] += seen([batch])
            batches += 1
            if batches == stop_after:
                state = loader.state_dict()
                loader = make(samples, batch_size, seed, drop_last=drop_last)
                loader.load_state_dict(state)
                break
        else:
            got.append([])
    assert got[:-1] == expected


@given(SIZES, st.integers(1, 50), st.integers(1, 20), SEEDS)
@settings(deadline=None, max_examples=60)
def test_micro_batches_are_the_whole_batch(samples, batch_size, micro_batch, seed):
    windows = make(samples, batch_size, seed).windows(micro_batch)
    for window, (inputs, numbers) in zip(windows, make(samples, batch_size, seed), strict=True):
        pieces = list(window)
        assert [len(piece) for _, piece in pieces] == [b - a for a, b in bounds(window.samples, micro_batch)]
        assert torch.equal(torch.cat([piece for piece, _ in pieces]), inputs)
        assert torch.equal(window.indices, numbers)


@given(st.integers(2, 40), st.integers(1, 45), st.integers(1, 45), SEEDS, st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_a_samples_augmentation_knows_no_batch(samples, batch_size, micro_batch, seed, epoch):
    images = torch.rand(samples, 1, 7, 5, generator=torch.Generator().manual_seed(0))
    alone = ShiftRotate(1.5, 20.0, 0.1)
    loader = BatchLoader((images, torch.arange(samples)), batch_size, seed=seed, transform=alone)
    loader.load_state_dict({"epoch": epoch, "consumed": 0})
    for window in loader.windows(micro_batch):
        for inputs, numbers in window:
            for image, number in zip(inputs, numbers, strict=True):
                one = torch.tensor([int(number)])
                assert torch.equal(image, alone(images[one], seed=seed, epoch=epoch, indices=one)[0])


@pytest.mark.parametrize("purpose", ["seed", "epoch"])
def test_orders_differ(purpose):
    orders = {tuple(epoch_order(20, **{"seed": 0, "epoch": 0, purpose: value}).tolist()) for value in range(50)}
    assert len(orders) == 50
