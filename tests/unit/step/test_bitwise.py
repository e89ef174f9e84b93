"""Bitwise mode in one process: what it computes, what it refuses, what it gives back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.step.bitwise import Moved


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


def made(model: nn.Module, loss: Any = None, micro_batch: Any = 4, **options: Any) -> wb.Step:
    loss = nn.MSELoss() if loss is None else loss
    return wb.Step(model, sgd(model), loss, micro_batch=micro_batch, bitwise=True, **options)


def seeded(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers).double()


def data(samples: int = 11, width: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, width, dtype=torch.float64, generator=generator)
    return x, torch.randn(samples, 1, dtype=torch.float64, generator=generator)


def test_the_gradient_is_that_of_the_whole_batch():
    torch.manual_seed(0)
    model = seeded(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))
    x, y = data()
    other = copy.deepcopy(model)
    report = made(model)((x, y))
    nn.MSELoss()(other(x), y).backward()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 1e-12 * theirs.grad.norm()
    assert (report.samples, report.micro_batches, report.weight) == (11, 3, 11.0)


def test_batch_norm_sees_each_micro_batch_and_its_statistics_move_once():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3, momentum=0.3)
    model = seeded(norm, nn.Linear(3, 1))
    x, y = data(10)
    made(model)((x, y))
    pieces = x.split(4)
    mean = sum(len(piece) * piece.mean(0) for piece in pieces) / 10
    variance = sum(len(piece) * piece.var(0) for piece in pieces) / 10
    torch.testing.assert_close(norm.running_mean, 0.3 * mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm.running_var, 0.7 + 0.3 * variance, rtol=1e-12, atol=0)
    assert norm.num_batches_tracked == 1
    assert norm.momentum == 0.3


def test_statistics_of_a_layer_without_momentum_used_twice_and_recomputed():
    from torch.utils.checkpoint import checkpoint

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(3, momentum=None, affine=False), nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(2 * checkpoint(self.norm, x.requires_grad_(), use_reentrant=True) + 1))

    model = Twice().double()
    step = made(model)
    x, y = data(8)
    for _ in range(2):
        step((x, y))
    # both calls count: the mean of the pieces' means, and of the second calls', which are 1
    mean = (x[:4].mean(0) + x[4:].mean(0) + 2 * 1.0) / 4
    torch.testing.assert_close(model.norm.running_mean, mean, rtol=1e-12, atol=0)
    assert model.norm.num_batches_tracked == 2


def test_a_skipped_step_moves_no_statistics_and_frozen_layers_none_at_all():
    frozen, norm = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model = seeded(frozen, norm, nn.Linear(3, 1))
    frozen.eval()
    step = made(model, nonfinite="skip")
    x, y = data(8)
    assert step((x, y * float("inf"))).skipped
    assert norm.running_mean.abs().sum() == 0
    assert norm.num_batches_tracked == 0
    step((x, y))
    assert norm.running_mean.abs().sum() > 0
    assert frozen.running_mean.abs().sum() == 0


def test_draws_follow_from_seed_step_and_position_and_the_caller_gets_the_generator_back():
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Any) -> Any:
        seen.append(torch.rand(2))
        return (model(batch[0]) - batch[1]) ** 2

    def run(begin: int, samples: int) -> tuple[list[Tensor], Tensor]:
        model = seeded(nn.Linear(3, 1))
        torch.manual_seed(begin)
        before = torch.get_rng_state()
        step = made(model, loss, seed=5)
        seen.clear()
        for _ in range(2):
            step(data(samples))
        assert torch.equal(before, torch.get_rng_state())
        return list(seen)

    first, second = run(1, 11), run(2, 8)
    assert len(first) == 3 * 3  # the first step is made twice
    assert all(torch.equal(a, b) for a, b in zip(first[:3], first[3:6], strict=True))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert len({tuple(draw.tolist()) for draw in first}) == 6  # other places and other steps draw other numbers


def test_the_bound_follows_a_gradient_that_jumps_and_falls():
    factors = [1.0]

    def loss(model: nn.Module, batch: Any) -> Any:
        return factors[-1] * (model(batch[0]) - batch[1]) ** 2

    step = made(seeded(nn.Linear(3, 1)), loss, clip_norm=1.0)
    tries = []
    for factor in (1.0, 1.0, 1e6, 1e6, 1e-6, 1e-6):
        factors.append(factor)
        assert step(data(8)).grad_norm > 0
        tries.append(step._bitwise.tries)
    assert tries == [2, 1, 2, 1, 2, 1]
    assert step.calls == step.applied == 6
    seen = []
    other = made(seeded(nn.Linear(3, 1)))
    other.watch = lambda output, target: seen.append(len(output))
    other(data(11))
    assert other._bitwise.tries == 2
    assert seen == [4, 4, 3]  # metrics see every sample once


def test_a_window_that_changes_when_it_is_run_again_is_found():
    class Growing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.factor = nn.Linear(3, 1), 1.0

        def forward(self, x: Tensor) -> Tensor:
            self.factor *= 1e9
            return self.factor * self.layer(x)

    with pytest.raises(wb.InputError, match="the same window gave other gradients"):
        made(Growing().double())(data(4))


def test_the_state_goes_on_with_the_same_bits():
    def run(cut: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
        step = made(model)
        for number in range(4):
            if cut and number == 2:
                state, weights = step.state_dict(), model.state_dict()
                model = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.5), nn.Linear(5, 1)).double()
                model.load_state_dict(weights)
                step = made(model)
                step.load_state_dict(state)
            step(data(11))
            assert step._bitwise.tries == (2 if number == 0 else 1)
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


def test_losses_are_added_exactly():
    model = nn.Linear(1, 1).double()
    values = torch.tensor([[1e16], [1.0], [-1e16]], dtype=torch.float64)
    step = made(model, lambda m, batch: m(batch) * 0 + batch, micro_batch=1)
    assert float(step(values).loss_sum) == 1.0


def test_a_state_is_kept_when_it_is_saved_before_the_next_window():
    step = made(seeded(nn.Linear(3, 1)))
    step(data(4))
    other = made(seeded(nn.Linear(3, 1)))
    other.load_state_dict(step.state_dict())
    assert other.state_dict() == step.state_dict()
    assert len(other.state_dict()["bitwise"]["exponents"]) == 2


def test_a_batch_of_nothing_changes_nothing():
    step = made(seeded(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    report = step(data(0))
    assert (report.skipped, report.weight, report.micro_batches) == (True, 0.0, 0)


def test_a_window_of_an_iterator_keeps_its_pieces():
    x, y = data(11)
    models = [nn.Linear(3, 1).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first = made(models[0])((x, y))
    second = made(models[1])(wb.MicroBatches(iter([(x[:8], y[:8]), (x[8:], y[8:])])))
    assert torch.equal(models[0].weight, models[1].weight)
    assert first.loss == second.loss
    with pytest.raises(wb.BatchError, match="begins at sample 3, within a micro-batch of 4"):
        made(models[0])(wb.MicroBatches([(x[:3], y[:3]), (x[3:], y[3:])]))
    with pytest.raises(wb.BatchError, match=r"samples=5\) gave 11"):
        made(models[0])(wb.MicroBatches(iter([(x, y)]), samples=5))


@pytest.mark.parametrize("last", [False, True])
def test_every_micro_batch_is_in_memory_of_its_own_and_laid_out_alike(last):
    seen = []

    def loss(model: nn.Module, batch: Any) -> Any:
        seen.append((batch[0].untyped_storage().nbytes(), batch[0].stride()))
        return (model(batch[0].flatten(1)) - batch[1]) ** 2

    x, y = torch.randn(8, 3, 2, 2), torch.randn(8, 1)
    x = x.to(memory_format=torch.channels_last) if last else x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    made(nn.Linear(12, 1), loss)((x, y))
    assert seen == [(4 * 12 * 4, (12, 1, 6, 3) if last else (12, 4, 2, 1))] * 4


def test_a_rest_of_one_is_a_micro_batch():
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(8, 1))
    x = torch.randn(9, 2, 2, 2)
    assert made(model)((x, torch.randn(9, 1))).micro_batches == 3
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made(seeded(nn.BatchNorm1d(3), nn.Linear(3, 1)))(data(9))


def test_what_is_held_still_is_given_back():
    seen = []

    def loss(model: nn.Module, batch: Any) -> Any:
        seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), state()[2:]))
        return (model(batch[0]) - batch[1]) ** 2

    def state() -> tuple[Any, ...]:
        cudnn = torch.backends.cudnn
        fill = torch.utils.deterministic.fill_uninitialized_memory
        products = (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision)
        algorithms = torch.are_deterministic_algorithms_enabled()
        return torch.get_num_threads(), algorithms, cudnn.benchmark, cudnn.deterministic, fill, products

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.backends.cudnn.benchmark = True
    try:
        before = state()
        made(seeded(nn.Linear(3, 1)), loss)(data(4))
        made(seeded(nn.Linear(3, 1)), loss, threads=2)(data(4))
        assert state() == before
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = False
    held = (False, True, False, ("ieee", "ieee"))
    assert seen == [(1, True, held)] * 2 + [(2, True, held)] * 2


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.layer(x)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "auto": (nn.Linear(3, 1), {"micro_batch": "auto"}, "would follow the machine or the data; name a number"),
    "tokens": (nn.Linear(3, 1), {"micro_batch": "auto", "micro_batch_tokens": 5}, "micro_batch_tokens=5"),
    "threads": (nn.Linear(3, 1), {"threads": 0}, "threads=0"),
    "grouped": (
        wb.convert_batchnorm(nn.Sequential(nn.BatchNorm1d(3)), 4),
        {},
        "0 .GroupedBatchNorm1d.*leave wholebatch",
    ),
    "synchronised": (nn.Sequential(nn.SyncBatchNorm(3)), {}, "adds over processes within the forward"),
    "spectral": (nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 1))), {}, "spectral norm"),
    "sparse": (nn.Sequential(nn.Embedding(3, 1, sparse=True)), {}, "sparse=False"),
    "whole": (nn.Linear(3, 1), {"loss": wb.WholeBatchLoss(lambda m, b: m(b), lambda r: r.sum())}, "WholeBatchLoss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_still_is_refused_with_the_reason(name):
    model, options, said = REFUSED[name]
    with pytest.raises(wb.InputError, match=said):
        made(model, **options)


def test_more_is_refused():
    model = nn.Linear(3, 1).double()
    with pytest.raises(wb.ConfigError, match="threads=2 belongs to bitwise=True"):
        wb.Step(model, sgd(model), nn.MSELoss(), threads=2)
    with pytest.raises(wb.InputError, match=r"'seen'.*running statistics of batch and instance norm alone"):
        made(Counting().double())(data(8))
    with pytest.raises(wb.BatchError, match="take micro_batch=2 or more"):
        made(model, micro_batch=1)(data(4097))
    with pytest.raises(wb.BatchError, match="position=4 in process 0, but the processes before it have 0 samples"):
        made(model)(data(4), position=4)
    model._compiled_call_impl = lambda x: x  # what model.compile() sets
    with pytest.raises(wb.InputError, match="is compiled"):
        made(model)


def test_out_of_memory_cannot_be_answered_by_smaller_micro_batches():
    def loss(model: nn.Module, batch: Any) -> Any:
        if len(batch[0]) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return (model(batch[0]) - batch[1]) ** 2

    with pytest.raises(wb.OutOfMemoryError, match="micro_batch=4, which bitwise=True cannot make smaller"):
        made(nn.Linear(3, 1).double(), loss)(data(8))


def test_the_window_is_made_again_by_an_exception_of_its_own():
    assert not issubclass(Moved, wb.WholebatchError)
