"""Any model, loss, weights and split: the update is that of the whole batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import wholebatch as wb


@st.composite
def problems(draw: Any) -> tuple[nn.Module, Any, Any, int]:
    samples = draw(st.integers(1, 17))
    torch.manual_seed(draw(st.integers(0, 1000)))
    widths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    layers: list[nn.Module] = []
    for inside, outside in zip([3, *widths], [*widths, 4], strict=True):
        layers += [nn.Linear(inside, outside), draw(st.sampled_from([nn.Tanh, nn.ReLU, nn.SELU, nn.Identity]))()]
    model = nn.Sequential(*layers).double()
    x = torch.randn(samples, 3, dtype=torch.float64) * torch.logspace(-2, 2, samples, dtype=torch.float64)[:, None]
    kind = draw(st.sampled_from(["classes", "pair", "elements"]))
    if kind == "classes":
        y = torch.randint(-1, 4, (samples,))
        y[draw(st.integers(0, samples - 1))] = 2
        weight = torch.rand(4, dtype=torch.float64) + 0.1
        loss: Any = nn.CrossEntropyLoss(
            weight=weight, ignore_index=-1, label_smoothing=draw(st.sampled_from([0.0, 0.3]))
        )
        return model, (x, y), loss, samples
    y = torch.randn(samples, 4, dtype=torch.float64)
    if kind == "elements":
        return model, (x, y), nn.SmoothL1Loss(), samples
    weights = torch.rand(samples, 4, dtype=torch.float64) * (torch.rand(samples, 4) > 0.5)
    weights[0, 0] = 1
    return model, (x, y, weights), lambda m, b: ((m(b[0]) - b[1]) ** 2, b[2]), samples


def whole_gradient(model: nn.Module, batch: Any, loss: Any) -> Tensor:
    model = copy.deepcopy(model)
    if isinstance(loss, nn.Module):
        loss(model(batch[0]), batch[1]).backward()
    else:
        losses, weights = loss(model, batch)
        ((losses * weights).sum() / weights.sum()).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@settings(deadline=None, max_examples=80)
@given(problems(), st.data())
def test_any_split(problem: Any, data: Any) -> None:
    model, batch, loss, samples = problem
    exact = whole_gradient(model, batch, loss)
    copied = copy.deepcopy(model)
    step = wb.Step(
        copied, torch.optim.SGD(copied.parameters(), lr=0.0), loss, micro_batch=data.draw(st.integers(1, samples + 2))
    )
    if data.draw(st.booleans()):
        cuts = sorted(data.draw(st.lists(st.integers(0, samples), max_size=4)))
        bounds = list(zip([0, *cuts], [*cuts, samples], strict=True))
        report = step(wb.MicroBatches([tuple(part[a:b] for part in batch) for a, b in bounds]))
    else:
        report = step(batch)
    ours = torch.cat([p.grad.flatten() for p in copied.parameters()])
    assert float((ours - exact).norm()) <= 1e-12 * float(exact.norm()) + 1e-300
    assert report.samples == samples


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 13), st.integers(1, 14), st.floats(0.05, 0.95), st.integers(0, 5))
def test_dropout_does_not_see_the_micro_batch(samples: int, micro: int, p: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(p), nn.Linear(5, 2)).double()
    x, y = torch.randn(samples, 3, dtype=torch.float64), torch.randn(samples, 2, dtype=torch.float64)
    gradients = []
    for size in (micro, samples):
        copied = copy.deepcopy(model)
        step = wb.Step(copied, torch.optim.SGD(copied.parameters(), lr=0.0), F.mse_loss, micro_batch=size, seed=seed)
        step((x, y))
        gradients.append(torch.cat([q.grad.flatten() for q in copied.parameters()]))
    assert float((gradients[0] - gradients[1]).norm()) <= 1e-12 * float(gradients[1].norm()) + 1e-300
