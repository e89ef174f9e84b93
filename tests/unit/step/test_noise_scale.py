"""The gradient noise scale of steps: what is measured, against norms by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb


def data(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(6, 3).double()


def make(model: nn.Module, loss: Any, **options: Any) -> wb.Step:
    return wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, **options)


def added(step: wb.Step, batch: Any) -> list[Any]:
    """What one step adds to the estimate."""
    step(batch)
    return [float(one) for one in step.noise._waiting[-1]]


def norm_by_hand(loss: Any, batch: tuple[Tensor, Tensor]) -> float:
    model = net()
    loss(model(batch[0]), batch[1]).backward()
    return float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=0)], ids=["all", "ignored"])
@pytest.mark.parametrize("window", ["batch", "pieces"])
def test_the_norms_are_those_of_the_first_micro_batch_and_of_the_whole(loss: nn.Module, window: str) -> None:
    x, y = data(11)
    batch: Any = (x, y)
    if window == "pieces":
        batch = wb.MicroBatches([(x[:4], y[:4]), (x[4:8], y[4:8]), (x[8:], y[8:])], samples=11)
    found = added(make(net(), loss, micro_batch=4, clip_norm=1e-3), batch)
    by_hand = [norm_by_hand(loss, (x[:4], y[:4])), norm_by_hand(loss, (x, y)), 4, 11]
    assert found == pytest.approx(by_hand, rel=1e-12)


def test_a_loss_that_is_a_sum_is_measured_per_sample() -> None:
    of_sum = added(make(net(), nn.CrossEntropyLoss(reduction="sum"), micro_batch=4), data(11))
    assert of_sum == pytest.approx(added(make(net(), nn.CrossEntropyLoss(), micro_batch=4), data(11)), rel=1e-12)


def test_one_micro_batch_in_one_process_says_nothing() -> None:
    step = make(net(), nn.CrossEntropyLoss())
    for seed in range(20):
        report = step(data(11, seed))
    assert report.noise_scale is None
    assert report.noise_interval is None
    assert "not measured" in step.noise.sentence()


def test_known_noise_is_found_through_the_step() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((20,), 0.4, dtype=torch.float64)
    model = nn.Linear(20, 1, bias=False).double()  # the loss is the output: its gradient is the sample
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), lambda m, b: m(b[0])[:, 0], micro_batch=8)
    for _ in range(2000):
        report = step((mean + torch.randn(64, 20, generator=generator, dtype=torch.float64),))
    true = 20 / float(mean.square().sum())
    low, high = report.noise_interval or (0, 0)
    assert report.noise_scale == pytest.approx(true, rel=0.1)
    assert low < true < high


def test_a_report_keeps_what_its_step_knew_and_a_state_goes_on() -> None:
    step, reports = make(net(), nn.CrossEntropyLoss(), micro_batch=8), []
    step.optimizer.param_groups[0]["lr"] = 0.0
    for seed in range(14):
        x, y = data(32, seed)
        reports.append(step((x + 2, 0 * y)))
    first, state = reports[9].noise_scale, step.state_dict()
    assert first is not None
    assert first != reports[13].noise_scale
    other = make(net(), nn.CrossEntropyLoss(), micro_batch=8)
    other.load_state_dict(state)
    assert other.noise.value == reports[13].noise_scale
    del state["noise"]
    make(net(), nn.CrossEntropyLoss()).load_state_dict(state)  # one of an earlier version
