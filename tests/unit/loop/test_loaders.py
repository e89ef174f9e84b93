"""Loaders of a training and of an evaluation, made of what people have."""

from __future__ import annotations

import pytest
import torch

import wholebatch as wb
from wholebatch.data import BatchLoader
from wholebatch.loop.loaders import evaluation_loader, selecting, training_loader

X, Y = torch.arange(5.0), torch.arange(5)


def test_a_loader_selects_within_the_block_and_has_its_transform_back() -> None:
    loader = BatchLoader({"x": X, "y": Y}, 5, shuffle=False)
    with selecting(loader, None, "x", "y"):
        inputs, targets = next(iter(loader))
        assert torch.equal(inputs, X)
        assert torch.equal(targets, Y)
    assert loader.transform is None


def test_the_size_is_said_by_the_data_before_it_is_512() -> None:
    assert training_loader((X, Y), None, "epoch", 0, 0).batch_size == 512
    assert training_loader((X, Y), {0: 2, 1: 3}, "samples", 0, 0).batch_size == 2
    assert training_loader(BatchLoader((X, Y), 3), None, "epoch", 0, 0).batch_size == 3
    assert evaluation_loader((X, Y), 2, 0).batch_size == 2
    assert evaluation_loader(BatchLoader((X, Y), 3), 2, 0).batch_size == 3


def test_a_unit_without_a_schedule_of_sizes_is_refused() -> None:
    with pytest.raises(wb.ConfigError, match="batch_size_unit='samples' is about a schedule"):
        training_loader((X, Y), 2, "samples", 0, 0)
