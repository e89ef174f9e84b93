"""Precision: sums in float32, float32 weights behind bfloat16 ones, the scale of a float16 loss, tf32's switches."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.step.loss_scale import _GROWS_AFTER, LossScale

CE = nn.CrossEntropyLoss()
BF16 = torch.bfloat16


def model_of(width: int = 16) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(8, width), nn.BatchNorm1d(width).eval(), nn.Tanh(), nn.LayerNorm(width), nn.Linear(width, 4)
    )


def data(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 8, generator=draw), torch.randint(4, (samples,), generator=draw)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in model.parameters()])


def distance(some: Tensor, other: Tensor) -> float:
    return float((some - other).norm() / other.norm())


def sgd(model: nn.Module, lr: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def in_bf16(model: nn.Module) -> nn.Module:
    """A copy in bfloat16 but for batch norm, as ``bf16-true`` makes it."""
    model = copy.deepcopy(model).to(BF16)
    model[1].float()
    return model


def distances(precision: str) -> tuple[float, float, float]:
    """From the exact gradient of one batch of 1,024, on the same weights: ours, one sample at a time; summed in
    bfloat16; and that of one batch in bfloat16, which torch rounds once."""
    x, _ = data(1024)
    torch.manual_seed(1)
    x, y = x.to(BF16), (x @ torch.randn(8, 4)).argmax(1)
    start = model_of() if precision == "bf16-true" else in_bf16(model_of())
    found = []
    for micro in (1, 1024):
        model = copy.deepcopy(start)
        wb.Step(model, sgd(model), CE, micro_batch=micro, precision=precision)((x, y))
        found.append(gradient(model))
    naive = in_bf16(start)
    for row, label in zip(x.split(1), y.split(1), strict=True):
        (CE(naive(row).float(), label) / 1024).backward()
    exact = in_bf16(start).double()
    wb.Step(exact, sgd(exact), CE)((x.double(), y))
    ours, once, rounded = (distance(g, gradient(exact)) for g in (*found, gradient(naive)))
    return ours, rounded, once


@pytest.mark.parametrize("precision", ["bf16-true", "fp32"])
def test_gradients_are_summed_in_float32(precision: str) -> None:
    ours, summed_in_bf16, _ = distances(precision)
    assert ours < 1e-3
    assert summed_in_bf16 > 1e-2


def test_an_accumulator_sums_in_float32_and_every_optimizer_takes_it() -> None:
    x, y = data(64)
    for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad):
        model = model_of().to(BF16)
        plain = copy.deepcopy(model)
        accumulator, optimizer = wb.GradientAccumulator(model), kind(model.parameters(), lr=0.1)
        accumulator.add(nn.functional.cross_entropy(model(x.to(BF16)).float(), y, reduction="none"))
        accumulator.apply(optimizer)
        assert all(p.grad.dtype is torch.float32 and p.dtype is BF16 for p in model.parameters())
        other = kind(plain.parameters(), lr=0.1)
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            p.grad = q.grad.to(BF16)
        other.step()
        assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_small_updates_are_not_lost(kind: Any) -> None:
    """The float32 weights move as float32 training does; bfloat16 ones alone would stand still."""
    x, y = data(64)
    model, plain = model_of(), model_of()
    step = wb.Step(model, kind(model.parameters(), lr=1e-5), CE, precision="bf16-true", micro_batch=16)
    single = wb.Step(plain, kind(plain.parameters(), lr=1e-5), CE)
    before = copy.deepcopy(plain.state_dict())
    for _ in range(20):
        step((x, y))
        single((x, y))
    masters = step.state_dict()["float32_weights"]
    weight = plain[0].weight.detach()
    assert distance(masters["0.0.weight"] - before["0.weight"], weight - before["0.weight"]) < 0.1
    assert not torch.equal(weight, before["0.weight"])
    assert model[0].weight.dtype is BF16
    assert torch.equal(model[0].weight, masters["0.0.weight"].to(BF16))
    assert model[1].weight.dtype is torch.float32  # of batch norm
    for state in step.optimizer.state.values():
        assert all(value.dtype is torch.float32 for value in state.values() if isinstance(value, Tensor))


def saved(step: wb.Step) -> Any:
    return pickle.loads(pickle.dumps((step.model.state_dict(), step.optimizer.state_dict(), step.state_dict())))


def loaded(precision: str, state: Any) -> wb.Step:
    model = model_of()
    step = wb.Step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), CE, precision=precision)
    model.load_state_dict(state[0])
    step.optimizer.load_state_dict(state[1])
    step.load_state_dict(state[2])
    return step


@pytest.mark.parametrize("precision", ["bf16-true", "fp16"])
def test_a_step_goes_on_from_its_state(precision: str) -> None:
    torch.manual_seed(0)
    model = model_of()
    step = wb.Step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), CE, precision=precision)
    for _ in range(3):
        step(data(32))
    state = saved(step)
    again = loaded(precision, state)
    for one in (step, again):
        one(data(32, seed=1))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.model.parameters(), strict=True))
    if precision == "bf16-true":
        ours, theirs = (one.state_dict()["float32_weights"] for one in (step, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_that_somebody_writes_are_taken_over() -> None:
    model = model_of()
    step = wb.Step(model, sgd(model, 1e-6), CE, precision="bf16-true")
    step(data(8))
    with torch.no_grad():
        model[0].weight[0] = 7
    kept = step.state_dict()["float32_weights"]["0.0.weight"][1].clone()
    step(data(8))
    assert torch.all(model[0].weight[0] == 7)
    masters = step.state_dict()["float32_weights"]["0.0.weight"]
    assert distance(masters[1], kept) < 1e-4


def test_float32_weights_of_another_model_are_refused() -> None:
    step = wb.Step(model := model_of(), sgd(model), CE, precision="bf16-true")
    other = wb.Step(wide := model_of(20), sgd(wide), CE, precision="bf16-true")
    with pytest.raises(wb.InputError, match="of another model"):
        step.load_state_dict(other.state_dict())


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32", "bf16-true"])
def test_training_and_evaluation_go_through(precision: str) -> None:
    model = model_of()
    history = wb.train(
        model,
        data(96),
        loss=CE,
        optimizer=torch.optim.AdamW,
        batch_size=32,
        micro_batch=8,
        epochs=2,
        precision=precision,
        eval_data=data(40, 2),
        display=False,
    )
    losses = [record["loss"] for record in history.records if record["split"] == "train"]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


# float16 -----------------------------------------------------------------------------------------------------------


def scaled(start: float, **options: Any) -> tuple[wb.Step, nn.Module]:
    model = model_of()
    step = wb.Step(model, sgd(model, 0.1), CE, precision="fp16", micro_batch=8, **options)
    state = step.state_dict()
    step.load_state_dict({**state, "loss_scale": {"value": start, "good": 0}})
    return step, model


def test_the_scale_changes_no_result() -> None:
    """Powers of two change no digit where nothing vanishes."""
    weights = []
    for start in (2.0**6, 2.0**10):
        step, model = scaled(start)
        report = step(data(32))
        assert not report.skipped
        weights.append([p.detach() for p in model.parameters()])
    assert max(distance(p, q) for p, q in zip(*weights, strict=True)) < 1e-4


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    step, model = scaled(2.0**40)
    before = copy.deepcopy(model.state_dict())
    assert step(data(32)).skipped
    assert step.loss_scale == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    while step(data(32)).skipped:
        pass
    assert 1 < step.loss_scale < 2.0**30
    assert step.skipped == step.calls - 1
    assert step.applied == 1
    assert step.state_dict()["loss_scale"] == {"value": step.loss_scale, "good": 1}


def test_small_gradients_do_not_vanish() -> None:
    """In float16 a gradient below 6e-8 is zero; scaled it is not."""
    x, y = data(32)

    def tiny(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") * 1e-7

    found = []
    for precision in ("fp16", "fp32"):
        model = model_of()
        wb.Step(model, sgd(model), tiny, precision=precision)((x, y))
        found.append(gradient(model))
    assert distance(*found) < 1e-2
    model = model_of()
    with torch.autocast("cpu", torch.float16):
        loss = tiny(model, (x, y)).mean()
    loss.backward()
    assert distance(gradient(model), found[1]) > 0.1


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_what_no_scale_can_help_is_not_blamed_on_it(nonfinite: str) -> None:
    step, _ = scaled(2.0**10, nonfinite=nonfinite)
    x, y = data(8)
    x[3] = math.nan
    if nonfinite == "raise":
        with pytest.raises(wb.NonFiniteError, match="step 1"):
            step((x, y))
    else:
        assert step((x, y)).skipped
    assert step.loss_scale == 2.0**10


def test_a_batch_of_weight_0_says_nothing_of_the_scale() -> None:
    step, _ = scaled(2.0**10)
    x, y = data(8)
    assert step((x, torch.full_like(y, -100))).skipped
    assert step.state_dict()["loss_scale"] == {"value": 2.0**10, "good": 0}


def test_the_scale_grows_after_many_good_steps_and_has_bounds() -> None:
    scale = LossScale()
    for _ in range(_GROWS_AFTER - 1):
        scale.fitted()
    assert scale.value == 2.0**16
    scale.fitted()
    assert (scale.value, scale.good) == (2.0**17, 0)
    while scale.overflowed():
        pass
    assert scale.value == 2.0**-24


# tf32 ----------------------------------------------------------------------------------------------------------------


def test_tf32_sets_the_switches_for_the_step_and_gives_them_back() -> None:
    places = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    places[0].fp32_precision = "ieee"
    before = [place.fp32_precision for place in places]
    try:
        seen = []

        def loss(model: nn.Module, batch: Any) -> Tensor:
            seen.append([place.fp32_precision for place in places])
            return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

        for precision in ("tf32", "fp32"):
            model = model_of()
            wb.Step(model, sgd(model), loss, precision=precision)(data(8))
            assert [place.fp32_precision for place in places] == before
        assert seen == [["tf32"] * 3, before]
        step = wb.Step(model, sgd(model), lambda *_: 1 / 0, precision="tf32")
        with pytest.raises(ZeroDivisionError):
            step(data(8))
        assert [place.fp32_precision for place in places] == before
    finally:
        places[0].fp32_precision = "none"


def test_an_unknown_precision_names_those_there_are() -> None:
    model = model_of()
    with pytest.raises(wb.ConfigError, match=r"precision='fp8'; expected one of fp32, tf32, bf16, fp16, bf16-true"):
        wb.Step(model, sgd(model), CE, precision="fp8")


def test_layers_are_recomputed_while_training_alone() -> None:
    results = []
    for layers in (None, "0, 1, 2"):
        model, calls = model_of(), []
        model[2].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model[0].forward = model[0].forward  # one's own stays one's own
        own = model[0].forward
        wb.train(
            model,
            data(32),
            loss=CE,
            optimizer=sgd(model, 0.1),
            batch_size=32,
            epochs=1,
            recompute=layers,
            display=False,
        )
        results.append([p.detach().clone() for p in model.parameters()])
        assert model[0].forward is own
        assert "forward" not in vars(model[2])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))


@pytest.mark.parametrize("precision", ["bf16-true", "fp16"])
def test_a_run_that_was_resumed_is_the_same_one(precision: str, tmp_path: Any) -> None:
    results = []
    for stops in ((4,), (2, 4)):
        folder = tmp_path / str(len(stops))
        for epochs in stops:
            model = model_of()
            wb.train(
                model, data(64), loss=CE, optimizer=torch.optim.AdamW, batch_size=16, micro_batch=4, epochs=epochs,
                precision=precision, run_dir=folder, resume=epochs == 4 and len(stops) == 2, display=False,
            )  # fmt: skip
        results.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*results, strict=True))
