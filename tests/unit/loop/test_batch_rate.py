"""The learning rate that follows a schedule of batch sizes, against a loop by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.errors import ConfigError
from wholebatch.data.order import epoch_order

SIZES = {0: 8, 2: 18}  # of 20 samples: 8, 8, 4 twice, then 18, 2


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 3, generator=generator, dtype=torch.float64), torch.arange(20) % 2


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2).double()


def by_hand(factor: float) -> nn.Module:
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for epoch in range(3):
        order, size = epoch_order(20, 0, epoch), 18 if epoch == 2 else 8
        for rows in order.split(size):
            optimizer.param_groups[0]["lr"] = 0.5 * (factor if epoch == 2 else 1.0)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(("rule", "factor"), [(None, 1.0), ("linear", 18 / 8), ("sqrt", (18 / 8) ** 0.5)])
def test_the_rate_of_every_step_is_that_of_its_batch_size(rule: Any, factor: float, tensor: bool) -> None:
    model, rate = net(), torch.tensor(0.5, dtype=torch.float64) if tensor else 0.5
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    history = wb.train(
        model,
        data(),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        batch_size=SIZES,
        batch_lr_rule=rule,
        micro_batch=3,
        epochs=3,
        log_every=1,
        display=False,
    )
    for ours, theirs in zip(model.parameters(), by_hand(factor).parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    rates = [record["lr"] for record in history.select("train", "step")]
    assert rates == pytest.approx([0.5] * 6 + [0.5 * factor] * 2)
    assert float(optimizer.param_groups[0]["lr"]) == 0.5


def test_what_cannot_be_is_refused() -> None:
    def training(**options: Any) -> None:
        wb.train(net(), data(), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, display=False, **options)

    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        training(batch_size=SIZES, batch_lr_rule="linaer")
    with pytest.raises(ConfigError, match="about a schedule of batch sizes"):
        training(batch_size=8, batch_size_unit="samples")


def test_a_run_that_goes_on_keeps_its_rule(tmp_path: Path) -> None:
    def train(rule: str, resume: bool) -> None:
        model = torch.nn.Linear(2, 2)
        data = torch.ones(8, 2), torch.zeros(8, dtype=torch.int64)
        wb.train(
            model,
            data,
            loss=torch.nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD,
            batch_size={0: 2, 1: 4},
            batch_lr_rule=rule,
            micro_batch=2,
            epochs=2,
            run_dir=tmp_path / "run",
            resume=resume,
            display=False,
        )

    train("linear", False)
    train("linear", True)
    with pytest.raises(wb.CheckpointError, match="batch_lr_rule"):
        train("sqrt", True)
