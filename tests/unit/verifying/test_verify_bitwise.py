"""``verify(bitwise=True)``: planted causes of other bits are found and named; a clean model has the same bits."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.verifying import DigestCheck


class Noise(nn.Module):
    """Adds what ``draw`` gives, a number per call."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.draw()


def of_numpy() -> float:
    return float(np.random.rand())


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + self.calls / 10)


class OwnGenerator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + float(self.rng.random())


class Between(nn.Module):
    """Draws before a layer of its own, which is not to blame."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + of_numpy())


_calls = 0


def of_the_module() -> float:
    global _calls
    _calls += 1
    return float(_calls)


class Wavering(torch.autograd.Function):
    """A backward that gives something else every time, as atomic additions do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (1 + 1e-3 * of_the_module())


class Kernel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Wavering.apply(x)


def net(inner: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), inner, nn.Dropout(0.5), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(22, 6, generator=generator), torch.arange(22) % 3


def verify(model: nn.Module, loss: Any = None, data: Any = None, **options: Any) -> DigestCheck:
    check = wb.verify(model, loss or nn.CrossEntropyLoss(), data or batch(), bitwise=True, show=False, **options)
    assert isinstance(check, DigestCheck)
    return check


def test_a_clean_model_has_the_same_bits() -> None:
    check = verify(net(nn.Tanh()), micro_batches=[4], processes=(2, 3))
    assert check.ok
    assert check.error == 0
    assert [count for count, _ in check.digests] == [1, 2, 3]
    assert len({digest for _, digest in check.digests}) == 1
    assert "the same bits every time" in str(check)
    other = verify(net(nn.Tanh()), micro_batches=[5])
    assert other.digests[0][1] != check.digests[0][1]  # batch norm and dropout are there at all


PLANTED: dict[str, tuple[Any, str, str]] = {
    "NumPy": (lambda: Noise(of_numpy), "2 (Noise)", "an unkeyed draw: 2 (Noise) draws from numpy.random"),
    "between layers": (Between, "2 (Between)", "an unkeyed draw: 2 (Between) draws from numpy.random"),
    "Python": (lambda: Noise(random.random), "2 (Noise)", "an unkeyed draw: 2 (Noise) draws from Python's random"),
    "own": (OwnGenerator, "2 (OwnGenerator)", "draws from a generator of its own, 'rng'"),
    "counter": (Counter, "2 (Counter)", "state kept in Python: 2 (Counter) changes its attribute 'calls'"),
    "global": (lambda: Noise(of_the_module), "2 (Noise)", "2 (Noise) gives another output when it is run again"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_cause_is_named(name: str) -> None:
    make, layer, cause = PLANTED[name]
    torch.manual_seed(3)
    numpy, python = np.random.get_state(legacy=False), random.getstate()
    model = net(make())
    check = verify(model, micro_batches=[4], processes=(2,))
    assert not check.ok
    assert check.difference is not None
    assert (check.difference.step, check.difference.where, check.difference.layer) == (1, "layer", layer)
    assert check.difference.parameter == "0.weight"
    assert cause in check.cause
    assert f"layer {layer} gives another output for the same input" in str(check)
    assert "differs" in str(check)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy)
    assert random.getstate() == python
    with pytest.raises(wb.WrongStepError, match="first difference: step 1"):
        verify(model, micro_batches=[4], processes=(2,), strict=True)


def test_a_backward_that_wavers_is_named() -> None:
    check = verify(net(Kernel()), micro_batches=[4], processes=(2,))
    assert check.difference is not None
    assert (check.difference.where, check.difference.layer) == ("backward", "1 (BatchNorm1d)")
    assert "the gradient of 1.bias is another when it is computed again" in check.cause
    assert "kernel that is not deterministic" in check.cause


def noisy_loss(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y, reduction="none") * np.random.rand()


def test_a_draw_in_the_loss_is_named() -> None:
    check = verify(net(nn.Tanh()), noisy_loss, micro_batches=[4], processes=(2,))
    assert check.difference is not None
    assert check.difference.where == "backward"
    assert "the loss function draws from numpy.random" in check.cause


def mean_loss(model: nn.Module, batch: Any) -> Any:
    x, y = batch
    return F.cross_entropy(model(x), y), 1


def bare_loss(model: nn.Module, batch: Any) -> Any:
    x, y = batch
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize("loss", [mean_loss, bare_loss])
def test_a_mean_reduced_loss_is_named(loss: Any) -> None:
    check = verify(net(nn.Tanh()), loss)
    assert not check.ok
    assert f"wrong: the loss {loss.__name__}" in str(check)
    assert "mean-reduced" in str(check)


class Unstable:
    """Samples that change with every read."""

    reads = 0

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        Unstable.reads += 1
        return torch.full((6,), float(Unstable.reads)), index % 3


def test_a_data_set_that_gives_something_else_is_named() -> None:
    check = verify(net(nn.Tanh()), data=Unstable())
    assert not check.ok
    assert "Unstable is unstable: item 0 differs when it is read twice" in str(check)


def loop(model: nn.Module, batches: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        (F.cross_entropy(model(x), y) / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()


def by_hand(model: nn.Module, batches: Any) -> None:
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad / len(batches)
            parameter.grad = None


@pytest.mark.parametrize("take_step", [loop, by_hand])
@pytest.mark.parametrize(("inner", "ok"), [(nn.Tanh, True), (Kernel, False)])
def test_a_loop_made_twice(take_step: Any, inner: Any, ok: bool) -> None:
    batches = [(torch.randn(4, 6), torch.arange(4) % 3) for _ in range(3)]
    check = wb.check_step(take_step, net(inner()), batches, nn.CrossEntropyLoss(), bitwise=True, show=False)
    case = next(case for case in check.cases if case.name.startswith("twice from the same state"))
    assert case.ok is ok
    assert ("a kernel that is not deterministic" in case.meaning) is not ok
    assert not wb.check_step(take_step, net(Kernel()), batches, nn.CrossEntropyLoss(), bitwise=True, show=False).ok
