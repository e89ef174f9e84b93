import math

import pytest
import torch

from wholebatch.core.errors import DataError
from wholebatch.data import ArrayDataset, channel_statistics, digits

BYTES = torch.randint(0, 256, (100, 3, 7, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
BYTES[:, 2] = 9


class Singly(torch.utils.data.Dataset):
    """Images of several sizes come one by one."""

    def __len__(self):
        return 100

    def __getitem__(self, number):
        return BYTES[number], number


def test_against_float64():
    got = channel_statistics(ArrayDataset(BYTES, torch.arange(100)))
    values = BYTES.double() / 255
    assert got.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), rel=1e-14)
    assert got.std[:2] == pytest.approx(values.std((0, 2, 3), correction=0).tolist()[:2], rel=1e-13)
    assert got.std[2] == 1.0  # a constant channel


def test_order_and_pieces_change_no_bit(monkeypatch):
    import sys

    whole = channel_statistics(ArrayDataset(BYTES, torch.arange(100)))
    assert channel_statistics(ArrayDataset(BYTES[torch.randperm(100)], torch.arange(100))) == whole
    assert channel_statistics(Singly()) == whole
    monkeypatch.setattr(sys.modules["wholebatch.data.statistics"], "_AT_ONCE", 1000)
    assert channel_statistics(ArrayDataset(BYTES, torch.arange(100))) == whole


def test_exact_where_floats_are_not():
    """Two values beside each other: the deviation is half of a step, whatever the mean."""
    images = torch.full((2, 1, 1000, 1000), 254, dtype=torch.uint8)
    images[1] = 255
    got = channel_statistics(ArrayDataset(images))
    assert got.mean == (254.5 * (1 / 255),)
    assert got.std == (0.5 * (1 / 255),)


def test_the_digits_own():
    got = channel_statistics(digits("train"), scale=1 / 16)
    assert [round(value, 3) for value in (*got.mean, *got.std)] == [0.305, 0.377]
    assert not math.isclose(got.mean[0], 0.305, rel_tol=1e-6)


@pytest.mark.parametrize("images", [BYTES.float(), BYTES[:, 0]])
def test_refusals(images):
    with pytest.raises(DataError, match=r"uint8 \(channels, height, width\), got"):
        channel_statistics(ArrayDataset(images))


def test_one_number_of_channels():
    with pytest.raises(DataError, match="one number of channels, got 3 and 1"):
        channel_statistics([(BYTES[0], 0), (BYTES[0, :1], 0)])
