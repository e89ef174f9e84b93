"""``check_step`` finds the mistakes that loops make, each imitated by hand, and none in a right loop."""

from __future__ import annotations

import copy
import io
import random
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import wholebatch as wb

K = 4  # micro-batches of the window, and what the loops are configured for
LOSS = nn.CrossEntropyLoss()
Pairs = list[tuple[Tensor, Tensor]]


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3)]
    return nn.Sequential(*layers).to(dtype)


def window(samples: int = 4, dtype: torch.dtype = torch.float32) -> Pairs:
    torch.manual_seed(2)
    return [(torch.randn(samples, 8, dtype=dtype), torch.randint(0, 3, (samples,))) for _ in range(K)]


def check(take_step: Any, loss: Any = LOSS, model: nn.Module | None = None, **options: Any) -> wb.StepCheck:
    return wb.check_step(take_step, model or net(), window(), loss, show=False, **options)


def named(result: wb.StepCheck, start: str) -> Any:
    return next(case for case in result.cases if case.name.startswith(start))


# loops -------------------------------------------------------------------------------------------


def right(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    count = sum(int((y != -100).sum()) for _, y in batches)
    model.train()
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    optimizer.step()
    optimizer.zero_grad()


def divided_by_pieces(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        (F.cross_entropy(model(x), y) / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()


def divided_by_configured(model: nn.Module, batches: Pairs) -> None:
    """What accumulate() of Accelerate and accumulate_grad_batches of Lightning come to."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        (F.cross_entropy(model(x), y) / K).backward()
    optimizer.step()
    optimizer.zero_grad()


def short_window_dropped(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    for number, (x, y) in enumerate(batches, 1):
        (F.cross_entropy(model(x), y) / K).backward()
        if number % K == 0:
            optimizer.step()
            optimizer.zero_grad()


def not_divided(model: nn.Module, batches: Pairs) -> None:
    """Fabric's documented loop, and a head that ignores num_items_in_batch: a sum of means."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def by_samples(model: nn.Module, batches: Pairs) -> None:
    """Means weighted by samples: right until labels are masked."""
    optimizer = SGD(model.parameters(), lr=0.1)
    samples = sum(len(y) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y) * len(y) / samples).backward()
    optimizer.step()
    optimizer.zero_grad()


def sum_over_samples(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    samples = sum(len(y) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / samples).backward()
    optimizer.step()
    optimizer.zero_grad()


def sum_not_divided(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    optimizer.step()
    optimizer.zero_grad()


def zeroed_inside(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def zero_grad_forgotten(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    optimizer.step()


def averaged_over_ranks(model: nn.Module, batches: Pairs) -> None:
    """Two ranks, each with the exact mean of its own part, averaged as DistributedDataParallel does."""
    optimizer = SGD(model.parameters(), lr=0.1)
    half = (len(batches) + 1) // 2
    for part in (batches[:half], batches[half:]):
        count = max(1, sum(int((y != -100).sum()) for _, y in part))
        for x, y in part:
            (F.cross_entropy(model(x), y, reduction="sum") / count / 2).backward()
    optimizer.step()
    optimizer.zero_grad()


def stepping_each(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


# (loop, case, factor or None, what it means)
WRONG: list[tuple[Callable[..., None], str, float | None, str]] = [
    (divided_by_pieces, "uneven last", None, "unequal micro-batches weigh alike"),
    (divided_by_pieces, "labels masked", None, "unequal micro-batches weigh alike"),
    (divided_by_pieces, "one micro-batch all masked", None, "unequal micro-batches weigh alike"),
    (divided_by_configured, "uneven last", None, "unequal micro-batches weigh alike"),
    (divided_by_configured, "short window", 0.5, r"configured number of steps \(4\) although the window was shorter"),
    (divided_by_configured, "another split", None, "although the window was shorter, and unequal"),
    (short_window_dropped, "short window", 0.0, "no step was made: these samples never train"),
    (not_divided, "as given", 4.0, r"not divided by the number of micro-batches \(4\)"),
    (not_divided, "short window", 2.0, r"not divided by the number of micro-batches \(2\)"),
    (not_divided, "uneven last", None, r"not divided by the number of micro-batches \(4\), and unequal"),
    (by_samples, "labels masked", None, "unequal micro-batches weigh alike"),
    (sum_over_samples, "labels masked", 10 / 16, "divided by the number of samples, masked"),
    (sum_not_divided, "as given", 16.0, "the sum of the losses is not divided"),
    (zeroed_inside, "as given", None, "only the last micro-batch"),
    (zero_grad_forgotten, "the same window once more", None, "zero_grad is missing"),
    (averaged_over_ranks, "uneven last", None, "another direction"),
    (stepping_each, "as given", None, "stepped 4 times in one window"),
]


@pytest.mark.parametrize(("loop", "case", "factor", "means"), WRONG, ids=lambda v: getattr(v, "__name__", None))
def test_a_mistake_is_found_and_named(loop: Any, case: str, factor: float | None, means: str) -> None:
    result = check(loop)
    assert not result.ok
    found = named(result, case)
    assert not found.ok
    assert found.error > 0.05
    assert re.search(means, found.meaning), found.meaning
    if factor is not None:
        assert found.factor == pytest.approx(factor, rel=1e-9)
        assert found.error == pytest.approx(abs(factor - 1), rel=1e-9)


@pytest.mark.parametrize("loop", [divided_by_pieces, divided_by_configured, by_samples, averaged_over_ranks])
def test_a_mistake_that_needs_unequal_micro_batches_does_not_show_on_equal_ones(loop: Any) -> None:
    result = check(loop)
    assert [case.ok for case in result.cases[:2]] == [True, True]
    assert not all(case.ok for case in result.cases[2:])


def test_means_weighted_by_samples_are_named_where_that_is_another_thing() -> None:
    batches = [(torch.randn(n, 8), torch.randint(0, 3, (n,))) for n in (6, 4, 2)]
    batches[0][1][:4] = -100
    case = wb.check_step(by_samples, net(), batches, LOSS, show=False).cases[0]
    assert "weighted by samples, not by what counts" in case.meaning


def test_the_error_is_that_of_the_update() -> None:
    """Error and factor against numbers worked out here, from torch's own loss on the whole batch."""
    model, batches = net(torch.float64).eval(), window(dtype=torch.float64)
    pieces = [*batches[:3], (batches[3][0][:1], batches[3][1][:1])]
    parameters = list(model.parameters())

    def gradient(value: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(value, parameters)])

    whole = gradient(LOSS(model(torch.cat([x for x, _ in pieces])), torch.cat([y for _, y in pieces])))
    found = torch.stack([gradient(LOSS(model(x), y)) for x, y in pieces]).mean(0)
    case = named(wb.check_step(divided_by_pieces, model, batches, LOSS, show=False), "uneven last")
    assert case.error == pytest.approx(float((found - whole).norm() / whole.norm()), rel=1e-9)
    assert case.factor == pytest.approx(float(found @ whole / (whole @ whole)), rel=1e-9)


# right loops ---------------------------------------------------------------------------------------


def with_step(model: nn.Module, batches: Pairs) -> None:
    wb.Step(model, AdamW(model.parameters()), nn.CrossEntropyLoss())(wb.MicroBatches(batches))


def with_accumulator(model: nn.Module, batches: Pairs) -> None:
    gradients = wb.GradientAccumulator(model)
    for x, y in batches:
        gradients.add(F.cross_entropy(model(x), y, reduction="none"), weights=y != -100)
    gradients.apply(SGD(model.parameters(), lr=0.1))


def with_closure(model: nn.Module, batches: Pairs) -> None:
    """As Lightning does: the optimizer calls forward and backward."""
    optimizer = SGD(model.parameters(), lr=0.1)
    count = sum(int((y != -100).sum()) for _, y in batches)

    def closure() -> None:
        optimizer.zero_grad()
        for x, y in batches:
            (F.cross_entropy(model(x), y, reduction="sum") / count).backward()

    optimizer.step(closure)


class Outer(SGD):
    """An optimizer around another one, whose step is one step and not two."""

    def step(self, closure: Any = None) -> None:
        SGD([p for group in self.param_groups for p in group["params"]], lr=0.1).step()


def with_optimizer_around_another(model: nn.Module, batches: Pairs) -> None:
    optimizer = Outer(model.parameters(), lr=0.1)
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    optimizer.step()
    optimizer.zero_grad()


def two_optimizers(model: nn.Module, batches: Pairs) -> None:
    parameters = list(model.parameters())
    optimizers = [SGD(parameters[:2], lr=0.1), AdamW(parameters[2:])]
    model.zero_grad()
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    for optimizer in optimizers:
        optimizer.step()


def in_float32(model: nn.Module, batches: Pairs) -> None:
    """A divisor that is a float32 tensor, in a loop that turns everything into float32."""
    model.float()
    optimizer = SGD(model.parameters(), lr=0.1)
    count = sum((y != -100).float().sum() for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x.float()), y, reduction="sum") * (1 / count)).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    "loop",
    [right, with_step, with_accumulator, with_closure, with_optimizer_around_another, two_optimizers, in_float32],
    ids=lambda v: v.__name__,
)
def test_a_right_loop_is_not_accused(loop: Any) -> None:
    result = check(loop, strict=True)
    assert result.ok
    assert len(result.cases) == 7
    assert result.error < (1e-5 if loop is in_float32 else 1e-14)
    assert all(case.factor == pytest.approx(1, abs=1e-5) for case in result.cases)
    assert not any(case.meaning for case in result.cases)


def test_an_optimizer_made_before_for_the_model_itself_works() -> None:
    model = net()
    optimizer = AdamW(model.parameters(), lr=0.1)
    LOSS(model(window()[0][0]), window()[0][1]).backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())

    def take_step(_: nn.Module, batches: Pairs) -> None:
        optimizer.zero_grad()
        count = sum(int((y != -100).sum()) for _, y in batches)
        for x, y in batches:
            (F.cross_entropy(model(x), y, reduction="sum") / count).backward()  # the model of outside
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5  # as a schedule does

    assert check(take_step, model=model).ok
    after = optimizer.state_dict()
    assert optimizer.param_groups[0]["lr"] == 0.1
    for number, entries in state["state"].items():
        assert all(torch.equal(value, after["state"][number][name]) for name, value in entries.items())
    assert optimizer.state[model[0].weight]["exp_avg"].dtype is torch.float32


# by hand ----------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, batches: Pairs, scale: float = 1.0) -> None:
    """As d2l's sgd: in place, without an optimizer."""
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * scale * parameter.grad / count
            parameter.grad.zero_()


def test_an_update_by_hand_is_compared_by_its_change_where_the_rate_is_known() -> None:
    assert check(by_hand, lr=0.1).ok
    wrong = check(by_hand, lr=0.2)
    assert {round(case.factor, 6) for case in wrong.cases} == {0.5}
    assert "lr=0.2" in str(wrong)


def test_an_update_by_hand_is_compared_by_direction_otherwise() -> None:
    def twice(model: nn.Module, batches: Pairs) -> None:
        by_hand(model, batches, scale=2.0)

    result = check(twice)
    assert result.ok
    assert result.error < 1e-12
    assert all(np.isnan(case.factor) for case in result.cases)
    assert "direction" in str(result)

    def mean_of_means(model: nn.Module, batches: Pairs) -> None:
        for x, y in batches:
            F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None

    assert [case.ok for case in check(mean_of_means).cases] == [True, True, False, True, False, False, True]

    def uphill(model: nn.Module, batches: Pairs) -> None:
        by_hand(model, batches, scale=-1.0)

    assert not named(check(uphill), "as given").ok


def test_an_update_by_hand_in_float32_is_not_accused_of_rounding() -> None:
    class Insists(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    model = Insists(8, 3)
    with torch.no_grad():
        model.weight.add_(1e4)  # the change is small beside the weights
    result = wb.check_step(by_hand, model, window(), LOSS, lr=0.1, show=False)
    assert result.ok
    assert "float32" in str(result)


# clipping ---------------------------------------------------------------------------------------------


def clipping(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    optimizer.zero_grad()


def clipping_each(model: nn.Module, batches: Pairs) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    optimizer.zero_grad()


def test_clip_norm_says_that_the_whole_is_clipped() -> None:
    assert check(clipping, clip_norm=1e-3).error < 1e-12
    unsaid = check(clipping)
    assert not unsaid.ok
    assert "say clip_norm=" in unsaid.cases[0].meaning
    assert not check(clipping_each, clip_norm=1e-3).ok
    assert not check(clipping, clip_norm=1e-4).ok

    def as_in_the_book(model: nn.Module, batches: Pairs) -> None:  # without torch's 1e-6
        by_hand_clipped(model, batches)

    assert check(as_in_the_book, clip_norm=1e-3, lr=0.1).error < 1e-11


def by_hand_clipped(model: nn.Module, batches: Pairs) -> None:
    count = sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
    size = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad * 1e-3 / size
            parameter.grad = None


# what is left as it was ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [right, by_hand, not_divided, short_window_dropped])
def test_everything_is_left_as_it_was(loop: Any) -> None:
    model, batches = net(), window()
    model[3].eval()
    LOSS(model(batches[0][0]), batches[0][1]).backward()
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    kept = copy.deepcopy(batches)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()

    def careless(given: nn.Module, pieces: Pairs) -> None:
        given.train()
        torch.rand(3), np.random.rand(), random.random()
        loop(given, pieces)
        for x, y in pieces:
            x.zero_()
            y.zero_()
        given[0].bias.requires_grad_(False)
        given.eval()

    wb.check_step(careless, model, batches, LOSS, show=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == storages
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(parameter.requires_grad and parameter.dtype is torch.float32 for parameter in model.parameters())
    assert [module.training for module in model.modules()] == [True, True, True, True, False, True]
    assert not any("train" in vars(module) for module in model.modules())
    for (x, y), (a, b) in zip(batches, kept, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    x = torch.ones(1000)
    assert not torch.equal(F.dropout(x), x), "dropout is torch's own again"


def test_the_loop_gets_a_copy_in_float64_that_trains() -> None:
    model, seen = net(), []

    def looks(given: nn.Module, batches: Pairs) -> None:
        seen.append((given is model, given.training, given[1].training, given[3].training))
        seen.append((next(given.parameters()).dtype, batches[0][0].dtype, batches[0][1].dtype))
        x = torch.ones(50, 16, dtype=torch.float64)
        assert torch.equal(given.train()[3](x), x)
        assert torch.equal(F.dropout(x, 0.5, training=True), x)
        before = given[1].running_mean.clone()
        right(given, batches)
        assert torch.equal(given[1].running_mean, before)

    assert check(looks, model=model).ok
    assert set(seen) == {(False, True, False, False), (torch.float64, torch.float64, torch.int64)}


def test_what_happens_when_the_loop_fails() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())

    def fails(given: nn.Module, batches: Pairs) -> None:
        right(given, batches)
        raise KeyError("the loop's own")

    with pytest.raises(KeyError, match="the loop's own"):
        check(fails, model=model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_window_that_the_loop_refuses_is_no_mistake() -> None:
    def refuses(model: nn.Module, batches: Pairs) -> None:
        if len(batches) != K:
            raise ValueError("four, please")
        right(model, batches)

    result = check(refuses)
    assert result.ok
    assert "the loop refuses it (ValueError: four, please)" in named(result, "short window").meaning


# models, losses, batches -----------------------------------------------------------------------------------


def test_a_model_that_insists_on_float32_is_compared_in_float32() -> None:
    class Insists(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.float())

    result = wb.check_step(right, Insists(), window(), LOSS, show=False)
    assert result.ok
    assert 0 < result.error < 1e-5
    assert "a copy in float32" in str(result)
    assert not wb.check_step(not_divided, Insists(), window(), LOSS, show=False).ok


def test_labels_are_masked_with_the_loss_s_own_index() -> None:
    seen: list[int] = []

    def take_step(model: nn.Module, batches: Pairs) -> None:
        seen.append(sum(int((y == 0).sum()) for _, y in batches))
        optimizer = SGD(model.parameters(), lr=0.1)
        count = sum(int((y != 0).sum()) for _, y in batches)
        for x, y in batches:
            (F.cross_entropy(model(x), y, reduction="sum", ignore_index=0) / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    result = check(take_step, loss=nn.CrossEntropyLoss(ignore_index=0))
    assert result.ok
    assert seen[-2] > seen[0]


def test_a_loss_without_such_an_index_has_no_masked_cases() -> None:
    batches = [(torch.randn(4, 8), torch.randn(4, 3)) for _ in range(K)]

    def take_step(model: nn.Module, pieces: Pairs) -> None:
        optimizer = SGD(model.parameters(), lr=0.1)
        count = sum(y.numel() for _, y in pieces)
        for x, y in pieces:
            (F.mse_loss(model(x), y, reduction="sum") / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    result = wb.check_step(take_step, net(), batches, nn.MSELoss(), show=False)
    assert result.ok
    assert not any("masked" in case.name for case in result.cases)


class Head(nn.Module):
    """A model that computes its own mean loss, as Hugging Face's do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(x), labels)}


def mean_and_count(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model(**batch)["loss"], (batch["labels"] != -100).sum()


def test_a_loss_function_of_model_and_batch_with_labels_is_masked_too() -> None:
    batches = [{"x": x, "labels": y} for x, y in window()]

    def take_step(model: nn.Module, pieces: list[dict[str, Tensor]]) -> None:
        wb.Step(model, SGD(model.parameters(), lr=0.1), mean_and_count)(wb.MicroBatches(pieces))

    result = wb.check_step(take_step, Head(), batches, mean_and_count, show=False)
    assert result.ok
    assert sum("masked" in case.name for case in result.cases) == 2

    def per_step(model: nn.Module, pieces: list[dict[str, Tensor]]) -> None:
        optimizer = SGD(model.parameters(), lr=0.1)
        for piece in pieces:
            (model(**piece)["loss"] / len(pieces)).backward()
        optimizer.step()
        optimizer.zero_grad()

    assert not named(wb.check_step(per_step, Head(), batches, mean_and_count, show=False), "labels masked").ok


def test_one_micro_batch_is_a_window_too() -> None:
    result = wb.check_step(right, net(), window()[:1], LOSS, show=False)
    assert result.ok
    assert len(result.cases) >= 5
    assert not wb.check_step(not_divided, net(), window()[:1], LOSS, show=False).ok


def test_micro_batches_of_other_lengths_are_compared_as_they_are() -> None:
    """Padded to different lengths they cannot be joined, so that another split is left out."""
    model = nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 5))
    batches = [(torch.randint(0, 20, (3, n)), torch.randint(0, 5, (3, n))) for n in (4, 6, 5)]

    def tokens(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), reduction="none")
        return losses, (batch[1] != -100).flatten().to(losses)

    def take_step(model: nn.Module, pieces: Pairs) -> None:
        wb.Step(model, SGD(model.parameters(), lr=0.1), tokens)(wb.MicroBatches(pieces))

    result = wb.check_step(take_step, model, batches, tokens, show=False)
    assert result.ok
    assert not any("split" in case.name for case in result.cases)
    assert any("uneven" in case.name for case in result.cases)


def test_draws_that_nobody_turns_off_accuse_nobody() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    assert wb.check_step(right, nn.Sequential(nn.Linear(8, 4), Noise(), nn.Linear(4, 3)), window(), LOSS, show=False).ok


def test_recurrent_dropout_is_off() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 6, num_layers=2, dropout=0.5)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert self.lstm.dropout == 0
            return self.head(self.lstm(x.unsqueeze(0))[0][0])

    model = Recurrent()
    assert wb.check_step(right, model, window(), LOSS, show=False).ok
    assert model.lstm.dropout == 0.5


def test_parameters_that_no_optimizer_holds_are_not_compared() -> None:
    def head_only(model: Any, batches: Pairs) -> None:
        model.zero_grad()
        optimizer = SGD(model[4].parameters(), lr=0.1)
        count = sum(int((y != -100).sum()) for _, y in batches)
        for x, y in batches:
            (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
        optimizer.step()

    assert check(head_only).ok


# result and errors ------------------------------------------------------------------------------------------------


def test_strict_raises_with_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(wb.WrongStepError, match=r"short window, 4.4 +0.50 +×0.50") as caught:
        wb.check_step(divided_by_configured, net(), window(), LOSS, strict=True)
    assert isinstance(caught.value, AssertionError)
    assert capsys.readouterr().out.splitlines()[-1] == "wrong in 5 of 7 cases"


def test_the_table_is_printed_and_says_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    result = wb.check_step(right, net(), window(), LOSS)
    said = capsys.readouterr().out
    assert said == f"{result}\n"
    for words in ("dropout off", "batch norm frozen", "float64", "relative error", "factor", "right in every case"):
        assert words in said
    assert (result.ok, result.error) == (True, max(case.error for case in result.cases))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((right, "model", [], LOSS), wb.InputTypeError, "give a torch.nn.Module"),
        ((3, net(), window(), LOSS), wb.InputTypeError, r"take_step\(model, batches\)"),
        ((right, net(), [], LOSS), wb.BatchError, "empty"),
        ((right, net(), torch.ones(3), LOSS), wb.InputTypeError, "list of micro-batches"),
        ((right, net(), window(), lambda m, b: F.cross_entropy(m(b[0]), b[1])), wb.LossError, "bare scalar"),
        ((right, net().requires_grad_(False), window(), LOSS), wb.InputError, "no parameter that requires"),
    ],
)
def test_mistakes_in_the_question(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        wb.check_step(*arguments, show=False)


def test_a_rate_that_is_none() -> None:
    with pytest.raises(wb.InputError, match="expected a positive number"):
        check(right, lr=0.0)


def test_data_that_are_not_finite_are_said() -> None:
    batches = window()
    batches[0][0][0, 0] = float("nan")
    with pytest.raises(wb.InputError, match="not finite"):
        wb.check_step(right, net(), batches, LOSS, show=False)


# half precision, scaled gradients, several steps ---------------------------------------------------------------------


class Float32(nn.Module):
    """A model that insists on float32, so that autocast finds something to do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float())


def under_autocast(model: nn.Module, batches: Pairs, count: int | None = None) -> None:
    optimizer = SGD(model.parameters(), lr=0.1)
    count = count or sum(int((y != -100).sum()) for _, y in batches)
    for x, y in batches:
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y, reduction="sum") / count
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_right_loop_under_autocast_is_not_accused() -> None:
    result = check(under_autocast, model=Float32())
    assert result.ok
    assert 1e-3 < result.error < 5e-2
    assert "the loop computes in bfloat16" in str(result)
    assert not check(lambda model, batches: under_autocast(model, batches, 16), model=Float32()).ok
    assert "computes in" not in str(check(right, model=Float32()))


def test_a_loop_that_turns_the_model_into_half_precision_is_compared() -> None:
    def turned(model: nn.Module, batches: Pairs) -> None:
        model.bfloat16()
        right(model, [(x.bfloat16(), y) for x, y in batches])

    model = net()
    result = check(turned, model=model)
    assert result.ok
    assert all(t.dtype in (torch.float32, torch.int64) for t in model.state_dict().values())


@pytest.mark.parametrize("fused", [False, True])  # which divides the gradients inside of step
def test_gradients_that_a_scaler_scaled_are_compared_as_the_optimizer_uses_them(fused: bool) -> None:
    def take_step(model: nn.Module, batches: Pairs) -> None:
        optimizer = AdamW(model.parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        count = sum(int((y != -100).sum()) for _, y in batches)
        for x, y in batches:
            scaler.scale(F.cross_entropy(model(x), y, reduction="sum") / count).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    assert check(take_step).error < 1e-14


def test_several_small_steps_are_no_step_of_the_whole() -> None:
    """Their gradients add up to the exact one where the weights hardly move; an optimizer with memory sees four."""

    def take_step(model: nn.Module, batches: Pairs) -> None:
        optimizer = SGD(model.parameters(), lr=0.0)
        count = sum(int((y != -100).sum()) for _, y in batches)
        for x, y in batches:
            (F.cross_entropy(model(x), y, reduction="sum") / count).backward()
            optimizer.step()
            optimizer.zero_grad()

    result = check(take_step)
    assert result.error < 1e-14
    assert not result.ok
    assert "stepped 4 times in one window" in result.cases[0].meaning


def test_a_step_that_finds_no_gradient_is_none() -> None:
    def take_step(model: nn.Module, batches: Pairs) -> None:
        right(model, batches)
        SGD(model.parameters(), lr=0.1).step()

    assert check(take_step, strict=True).ok


def test_a_model_in_float64_with_data_in_float32() -> None:
    def doubles(model: nn.Module, batches: Pairs) -> None:
        right(model, [(x.double(), y) for x, y in batches])

    assert check(doubles, model=net(torch.float64)).ok


@pytest.mark.parametrize("broken", ["encoding", "closed"])
def test_an_output_that_takes_no_table_stops_nothing(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii", write_through=True)
    if broken == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    assert wb.check_step(right, net(), window(), LOSS).ok
    assert broken == "closed" or b"?1.00" in raw.getvalue()


class ByFunction(nn.Module):
    """Dropout by torch's functions, not by layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), 0.5, self.training).unsqueeze(1).unfold(2, 4, 4)
        x = F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 * self.training)
        return self.last(x.flatten(1))


@pytest.mark.parametrize("loop", [right, with_step, with_accumulator], ids=lambda v: v.__name__)
def test_dropout_by_function_is_off_in_every_loop(loop: Any) -> None:
    assert check(loop, model=ByFunction(), strict=True).ok


# what mistakes are called, and which labels are masked ---------------------------------------------------------------


def divided_twice(model: nn.Module, batches: Pairs) -> None:
    """By the loop, and by an engine whose backward divides as well."""
    optimizer = SGD(model.parameters(), lr=0.1)
    for x, y in batches:
        (F.cross_entropy(model(x), y) / len(batches) / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_division_by_two_is_named() -> None:
    case = check(divided_twice).cases[0]
    assert case.factor == pytest.approx(1 / 4)
    assert "divided by the number of micro-batches (4) twice" in case.meaning


def test_a_forgotten_zero_grad_is_named_beside_another_mistake() -> None:
    def take_step(model: nn.Module, batches: Pairs) -> None:
        for x, y in batches:
            F.cross_entropy(model(x), y).backward()
        SGD(model.parameters(), lr=0.1).step()

    again = named(check(take_step), "the same window once more").meaning
    assert "zero_grad is missing; besides, not divided by the number of micro-batches (4)" in again


def test_whole_numbers_that_are_no_labels_are_not_masked() -> None:
    def squares(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0])[:, 0] - batch[1]) ** 2

    def take_step(model: nn.Module, batches: Pairs) -> None:
        optimizer = SGD(model.parameters(), lr=0.1)
        for x, y in batches:
            assert -100 not in y
            (squares(model, (x, y)).sum() / sum(len(b) for _, b in batches)).backward()
        optimizer.step()
        optimizer.zero_grad()

    names = [case.name for case in check(take_step, squares, strict=True).cases]
    assert len(names) == 5
    assert not any("masked" in name for name in names)


def test_labels_that_are_a_view_are_masked_in_the_copy_alone() -> None:
    batches = [(torch.randn(4, 8), torch.randint(0, 3, (2, 4)).t()[:, 0]) for _ in range(K)]
    tokens = [(x, torch.stack([y, y, y]).t()) for x, y in batches]
    assert not tokens[0][1].is_contiguous()
    seen: list[int] = []

    def losses(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        outputs = model(batch[0]).unsqueeze(2).expand(-1, -1, 3)
        return F.cross_entropy(outputs, batch[1], reduction="none"), batch[1] != -100

    def take_step(model: nn.Module, pieces: Pairs) -> None:
        seen.append(sum(int((y == -100).sum()) for _, y in pieces))
        wb.Step(model, SGD(model.parameters(), lr=0.1), losses)(wb.MicroBatches(pieces))

    assert wb.check_step(take_step, net(), tokens, losses, strict=True, show=False).ok
    assert seen[:5] == [0, 0, 0, 0, 0]
    assert seen[5] > 10
    assert not any(-100 in y for _, y in tokens)
