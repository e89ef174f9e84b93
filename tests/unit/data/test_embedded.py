import hashlib

import pytest
import torch

from wholebatch.core.errors import DataError
from wholebatch.data import BatchLoader, digits


def test_split_is_fixed_and_stratified():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert test.targets.bincount().tolist() == [36] * 10
    assert train.targets.bincount().tolist() == [142, 146, 141, 147, 145, 146, 145, 143, 138, 144]
    assert train.classes == tuple("0123456789")


def test_split_never_changes():
    digest = hashlib.sha256(digits("test").inputs.numpy().tobytes()).hexdigest()
    assert digest == "2cd6f4e01ed6f793e9cda4e47ddc18d044faa32b313113abef5189f37dcf0079"


def test_images_are_bytes_with_one_channel():
    for split in ("train", "test"):
        data = digits(split)
        assert data.inputs.dtype == torch.uint8
        assert data.inputs.shape[1:] == (1, 8, 8)
        assert data.targets.dtype == torch.int64
        assert int(data.inputs.max()) == 16
    image, label = digits("train")[0]
    assert image.shape == (1, 8, 8)
    assert label.ndim == 0


def test_loaders_give_normalised_floats():
    inputs, _ = next(iter(BatchLoader(digits("train"), 1437)))
    assert inputs.dtype == torch.float32
    assert abs(inputs.mean()) < 5e-3
    assert abs(inputs.std() - 1) < 5e-3


def test_no_such_split():
    with pytest.raises(DataError, match="got 'tests'; did you mean 'test'"):
        digits("tests")
