"""What is refused, with which words; weight 0; gradients that are not finite; schedules; who owns gradients."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def step(loss: Any = None, model: nn.Module | None = None, **options: Any) -> wb.Step:
    model = net() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    return wb.Step(model, optimizer, nn.CrossEntropyLoss() if loss is None else loss, **options)


@pytest.mark.parametrize(
    ("loss", "batch", "words"),
    [
        (lambda m, b: m(b[0]).mean(), (X, Y), r'bare scalar.*reduction="none"'),
        (lambda m, b: (m(b[0]), m(b[0])), (X, Y), "requires gradients"),
        (lambda m, b: (m(b[0]), torch.ones(8)), (X, Y), r"\(8, 3\).*\(8,\)"),
        (lambda m, b: (m(b[0]), 3), (X, Y), r"weights are int 3"),
        (lambda m, b: (m(b[0]).mean(), torch.ones(8)), (X, Y), "one weight"),
        (lambda m, b: (m(b[0]).mean(), None), (X, Y), "NoneType"),
        (lambda m, b: None, (X, Y), "NoneType"),
        (lambda m, b: 3.0, (X, Y), "float 3.0"),
        (lambda m, b: {"loss": m(b[0]).mean()}, (X, Y), "dict"),
        (lambda m, b: b[0], (X, Y), "no parameter"),
        (nn.CrossEntropyLoss(), (X, Y.float()), r"float32 of shape \(8,\).*targets\.long\(\)"),
        (nn.CrossEntropyLoss(), (X, Y.int()), r"int32.*targets\.long\(\)"),
        (nn.CrossEntropyLoss(), (X, Y + 5), r"output float32 of shape \(8, 3\).*out of bounds"),
        (nn.MSELoss(), (X, torch.zeros(8)), r"\(8, 3\).*\(8,\).*broadcasting"),
        (nn.MSELoss(), (X, torch.zeros(8, 1)), r"\(8, 3\).*\(8, 1\).*broadcasting"),
        (nn.BCELoss(weight=torch.ones(5, 1)), (X, torch.ones(8, 3)), r"\(5, 1\).*8 samples"),
        (nn.CrossEntropyLoss(), {"x": X, "y": Y}, r"f\(model, batch\)"),
        (nn.AdaptiveLogSoftmaxWithLoss(3, 3, [1], div_value=1.0), (X, Y), "requires gradients"),
    ],
)
def test_losses_that_cannot_be_summed(loss: Any, batch: Any, words: str) -> None:
    model = net()
    before = [p.clone() for p in model.parameters()]
    parameters = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
    with pytest.raises(wb.LossError, match=words) as caught:
        wb.Step(model, torch.optim.SGD(parameters, lr=0.1), loss)(batch)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ((X, Y[:5]), r"batch\[1\] has 5 samples \(shape \(5,\)\), but batch\[0\] has 8"),
        ({"a": X, "b": {"c": Y[:3]}}, r"batch\['b'\]\['c'\] has 3 samples"),
        ((1, "text"), "at least one tensor"),
        ((torch.tensor(3.0),), "at least one tensor"),
        (nn.utils.rnn.pack_sequence([X]), "PackedSequence"),
        (None, "NoneType"),
        ([], "at least one tensor"),
    ],
)
def test_batches_that_cannot_be_cut(batch: Any, words: str) -> None:
    with pytest.raises(wb.BatchError, match=words):
        step(lambda m, b: m(b[0]))(batch)


def test_constructor_refuses_with_the_repair() -> None:
    model = net()
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(wb.InputError, match=r"this model's parameters\(\)"):
        wb.Step(model, other, nn.MSELoss())
    with pytest.raises(wb.InputTypeError, match="closure"):
        wb.Step(model, torch.optim.LBFGS(model.parameters()), nn.MSELoss())
    with pytest.raises(wb.InputTypeError, match="Optimizer"):
        wb.Step(model, "sgd", nn.MSELoss())
    with pytest.raises(wb.InputTypeError, match=r"nn\.Module"):
        wb.Step(lambda x: x, other, nn.MSELoss())
    with pytest.raises(wb.InputTypeError, match="loss is a str"):
        step("mse")
    with pytest.raises(wb.InputTypeError, match="schedule is a float"):
        step(schedule=0.1)
    for name, value in {
        "micro_batch": 0,
        "clip_norm": -1.0,
        "precision": "fp8",
        "dropout": "off",
        "nonfinite": "ignore",
        "bitwise": True,
        "seed": "zero",
    }.items():
        with pytest.raises(wb.ConfigError, match=f"{name}="):
            step(**{name: value})
    for value in (-3, 1.5, True, "half"):
        with pytest.raises(wb.ConfigError, match="micro_batch"):
            step(micro_batch=value)
    with pytest.raises(wb.LossError, match="reduction='average'"):
        step(functools.partial(F.mse_loss, reduction="average"))


def test_a_model_wrapped_by_an_averaging_engine_is_refused() -> None:
    class DistributedDataParallel(nn.Module):  # by its name: making a real one needs a process group
        def __init__(self) -> None:
            super().__init__()
            self.module = net()

    with pytest.raises(wb.InputError, match=r"model\.module"):
        step(model=DistributedDataParallel())


@pytest.mark.parametrize("micro", [1, 3, 8])
@pytest.mark.parametrize("kind", ["ignored", "pair", "mean", "empty"])
def test_weight_0_changes_nothing(micro: int, kind: str) -> None:
    losses = {
        "ignored": nn.CrossEntropyLoss(),
        "pair": lambda m, b: (m(b[0]).pow(2), torch.zeros(len(b[0]), 3)),
        "mean": lambda m, b: (F.cross_entropy(m(b[0]), b[1] * 0 - 100), 0),
        "empty": nn.CrossEntropyLoss(),
    }
    s = step(losses[kind], micro_batch=micro, schedule=wb.CosineScheduler(10, base_lr=0.1))
    s((X, Y)) if kind in ("ignored", "empty") else None  # there is momentum to leave alone
    before = [p.clone() for p in s.model.parameters()]
    momenta = [state["momentum_buffer"].clone() for state in s.optimizer.state.values()]
    rate = s.optimizer.param_groups[0]["lr"]
    batch = (X[:0], Y[:0]) if kind == "empty" else (X, Y * 0 - 100)
    report = s(batch)
    assert report.skipped
    assert report.weight == 0
    assert math.isnan(report.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, s.model.parameters(), strict=True))
    after = [state["momentum_buffer"] for state in s.optimizer.state.values()]
    assert all(torch.equal(a, b) for a, b in zip(momenta, after, strict=True))
    assert s.optimizer.param_groups[0]["lr"] == rate


def test_a_mean_over_nothing_does_not_poison_the_rest() -> None:
    targets = Y.clone()
    targets[2:6] = -100

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
        x, y = batch
        return F.cross_entropy(model(x), y), (y != -100).sum()

    s = step(loss, micro_batch=2)
    exact = F.cross_entropy(s.model(X), targets)
    assert s((X, targets)).loss == pytest.approx(exact.item(), rel=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(poison: float) -> None:
    bad = X.clone()
    bad[5, 2] = poison
    s = step(micro_batch=3, schedule=wb.CosineScheduler(10, base_lr=0.1))
    s((X, Y))
    before = [p.clone() for p in s.model.parameters()]
    with pytest.raises(wb.NonFiniteError, match=r"step 2 is not finite, first in 'weight' of shape \(3, 4\)"):
        s((bad, Y))
    assert all(torch.equal(a, b) for a, b in zip(before, s.model.parameters(), strict=True))
    s((X, Y))
    assert (s.calls, s.applied, s.skipped) == (3, 2, 0)

    s = step(micro_batch=3, nonfinite="skip", schedule=wb.CosineScheduler(10, base_lr=0.1))
    s((X, Y))
    before = [p.clone() for p in s.model.parameters()]
    rate = s.optimizer.param_groups[0]["lr"]
    assert s((bad, Y)).skipped
    assert all(torch.equal(a, b) for a, b in zip(before, s.model.parameters(), strict=True))
    assert (s.calls, s.applied, s.skipped, s.optimizer.param_groups[0]["lr"]) == (2, 1, 1, rate)

    s = step(micro_batch=3, nonfinite="allow")
    assert not s((bad, Y)).skipped
    assert not next(s.model.parameters()).isfinite().all()


def test_weights_that_are_not_finite_are_refused() -> None:
    s = step(lambda m, b: (m(b[0]), torch.full((8, 3), math.inf)))
    with pytest.raises(wb.InputError, match="finite"):
        s((X, Y))


def test_schedules_are_stepped_once_per_applied_step() -> None:
    schedule = wb.CosineScheduler(6, base_lr=0.5, warmup_steps=2)
    s = step(micro_batch=2, schedule=schedule)
    rates = []
    for _ in range(8):
        rates.append(s.optimizer.param_groups[0]["lr"])
        s((X, Y))
    assert rates == pytest.approx([schedule(t) for t in range(8)], rel=1e-12)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    theirs = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    s = wb.Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=3, schedule=theirs)
    for _ in range(4):
        s((X, Y))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_step_owns_gradients_between_calls() -> None:
    s = step(micro_batch=3)
    for p in s.model.parameters():
        p.grad = torch.full_like(p, 1e9)  # left by somebody else
    exact = torch.autograd.grad(F.cross_entropy(s.model(X), Y), list(s.model.parameters()))
    s((X, Y))
    for p, g in zip(s.model.parameters(), exact, strict=True):
        assert torch.allclose(p.grad, g, rtol=1e-5, atol=1e-7)


def test_mixed_dtypes_and_windows_that_lie() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3).double())
    model[1].register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    report = step(model=model, micro_batch=3)((X, Y))
    assert report.grad_norm > 0
    with pytest.raises(wb.BatchError, match=r"samples=9\) gave 8"):
        step()(wb.MicroBatches([(X, Y)], samples=9))
    with pytest.raises(wb.InputTypeError, match="int"):
        wb.MicroBatches(3)  # type: ignore[arg-type]
    assert step()(wb.MicroBatches([])).skipped


def test_complex_parameters() -> None:
    model = nn.ParameterList([nn.Parameter(torch.randn(4, dtype=torch.complex64))])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    s = wb.Step(model, optimizer, lambda m, b: (b.to(torch.complex64) @ m[0]).abs() ** 2, micro_batch=3)
    exact = torch.autograd.grad(((X.to(torch.complex64) @ model[0]).abs() ** 2).mean(), model[0])[0]
    s(X)
    assert torch.allclose(model[0].grad, exact, rtol=1e-5)


def test_no_host_read_per_micro_batch() -> None:
    """Reads are counted at the dispatcher; a step costs the same few however many micro-batches there are."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_local_scalar_dense" in str(function) or "nonzero" in str(function):
                Count.reads += 1
            return function(*args, **(kwargs or {}))

    counts = []
    for micro in (8, 1):
        s = step(micro_batch=micro, model=nn.Sequential(nn.Linear(4, 3)))
        s((X, Y))
        s((X, Y))
        Count.reads = 0
        with Count():
            s((X, Y))
        counts.append(Count.reads)
    assert counts[0] == counts[1] <= 3
