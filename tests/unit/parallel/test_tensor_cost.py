"""Counting what a tensor group exchanges leaves no trace; the numbers: tests/distributed/test_tensor_exchange.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wholebatch as wb
from wholebatch.parallel.tensor_cost import exchanged
from wholebatch.step.tensor_group import TensorGroup


def test_by_hand_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 8), nn.Linear(8, 2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    with torch.no_grad():
        found = exchanged(model, {"3": "colwise", "4": "rowwise"}, torch.randn(3, 4, generator=torch.Generator()), 2)
    split, whole = 6 * 8 + 8 + 8 * 2, 4 * 6 + 6 + 6 + 6 + 6 * 8 + 8 + 8 * 2 + 2
    assert found == TensorGroup(summed=4 * (6 + 2), sums=2, split=split / whole)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module.training for module in model.modules())


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(wb.ConfigError, match="tensor=2 needs a plan for Linear"):
        exchanged(nn.Linear(2, 2), None, torch.ones(2, 2), 2)
