"""Where torch.optim.lr_scheduler has the same shape, an attached schedule gives the same rates to 1e-12."""

import pytest
import torch
from torch.optim import lr_scheduler

from wholebatch.schedule import (
    CosineScheduler,
    FactorScheduler,
    Joined,
    LinearScheduler,
    MultiFactorScheduler,
    PolynomialScheduler,
    TrapezoidScheduler,
    attach,
)

PAIRS = {
    "CosineAnnealingLR": (
        CosineScheduler(50, 0.3, 0.01),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 50, eta_min=0.01),
        50,
    ),
    "LinearLR": (
        LinearScheduler(40, base_lr=0.3 * 0.25, final_lr=0.3 * 0.75),
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.25, end_factor=0.75, total_iters=40),
        60,
    ),
    "LinearLR as warm-up": (
        TrapezoidScheduler(100, 0.3, warmup_steps=40, decay_steps=0, warmup_begin_lr=0.03),
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=40),
        99,
    ),
    "MultiStepLR": (
        MultiFactorScheduler([10, 25, 40], 0.3, 0.3),
        lambda o: lr_scheduler.MultiStepLR(o, [10, 25, 40], gamma=0.3),
        60,
    ),
    "StepLR": (
        MultiFactorScheduler([10, 20, 30, 40, 50], 0.7, 0.3),
        lambda o: lr_scheduler.StepLR(o, 10, gamma=0.7),
        59,
    ),
    "ExponentialLR": (
        FactorScheduler(0.95, 0.3, stop_factor_lr=0),
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.95),
        60,
    ),
    "PolynomialLR": (
        PolynomialScheduler(40, 0.3, power=1.7),
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=40, power=1.7),
        60,
    ),
    "OneCycleLR, cosine": (
        Joined([CosineScheduler(14, base_lr=0.012, final_lr=0.3), CosineScheduler(35, 0.3, 1.2e-6)], [14]),
        lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=50, pct_start=0.3, cycle_momentum=False),
        49,
    ),
    "OneCycleLR, linear": (
        LinearScheduler(49, 0.3, final_lr=1.2e-6, warmup_steps=14, warmup_begin_lr=0.012),
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.3, total_steps=50, pct_start=0.3, anneal_strategy="linear", cycle_momentum=False
        ),
        49,
    ),
}


def rates(make, steps):
    """The rate of each step, the optimizer's own being 0.3."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("name", PAIRS)
def test_the_rates_are_torchs(name):
    ours, theirs, steps = PAIRS[name]
    expected = rates(theirs, steps)
    assert len(set(expected)) > 3  # it does move
    # Torch's recursive schedulers round at every step; 1e-12 of the largest rate.
    assert rates(lambda o: attach(ours, o), steps) == pytest.approx(expected, rel=0, abs=0.3e-12)
