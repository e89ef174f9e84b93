"""Losses that couple samples: the update of any micro-batch is that of the whole batch at once, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.errors import InputError, InputTypeError, LossError

BAR = 1e-12
SAMPLES = 11


class Towers(nn.Module):
    """Two encoders and a temperature, with dropout and layer norm."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.left = nn.Sequential(nn.Linear(5, 8), nn.Dropout(p), nn.Tanh(), nn.Linear(8, 4))
        self.right = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 4), nn.LayerNorm(4))
        self.log_scale = nn.Parameter(torch.tensor(0.7))
        self.double()

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        return F.normalize(self.left(batch[0]), dim=-1), F.normalize(self.right(batch[1]), dim=-1)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(9)
    left, right = torch.randn(SAMPLES, 5).double(), torch.randn(SAMPLES, 3).double()
    return left, right, torch.randint(0, 3, (SAMPLES,))


def encode(model: nn.Module, piece: Any) -> tuple[Tensor, ...]:
    return (*model(piece), piece[2])


class InfoNCE(nn.Module):
    """CLIP's symmetric loss with a temperature of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1.1, dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        logits = self.log_scale.exp() * a @ b.T
        own = torch.arange(len(a))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def supervised(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    z = torch.cat([a, b])
    labels = labels.repeat(2)
    logits = (z @ z.T / 0.2).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    positive = (labels[:, None] == labels[None]) & ~torch.eye(len(z), dtype=torch.bool)
    log_p = logits.log_softmax(1)
    return -(torch.where(positive, log_p, 0).sum(1) / positive.sum(1).clamp(min=1)).mean()


def triplet(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    distance = torch.cdist(a, b)
    same = labels[:, None] == labels[None]
    furthest = torch.where(same, distance, -torch.inf).amax(1)
    nearest = torch.where(same, torch.inf, distance).amin(1)
    return F.relu(furthest - nearest + 0.5).mean()


def barlow(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    a, b = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)
    c = a.T @ b / len(a)
    return (c.diagonal() - 1).square().sum() + 0.01 * (c - torch.diag(c.diagonal())).square().sum()


def dropping(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
    return supervised(F.dropout(a, 0.3), b, labels)


LOSSES: dict[str, Callable[[], Any]] = {
    "clip": InfoNCE,
    "supervised": lambda: supervised,
    "triplet": lambda: triplet,
    "barlow": lambda: barlow,
    "dropout inside": lambda: dropping,
}


def gradients(micro_batch: int | str, loss: Any, p: float = 0.0, **options: Any) -> tuple[dict[str, Tensor], Any]:
    model = Towers(p)
    loss = copy.deepcopy(loss)
    own = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    optimizer = torch.optim.SGD([*model.parameters(), *own], lr=0.1)
    step = wb.Step(model, optimizer, wb.WholeBatchLoss(encode, loss), micro_batch=micro_batch, seed=3, **options)
    for _ in range(2):  # the second step starts from other weights, counters and masks
        report = step(batch())
    named = [*model.named_parameters(), *([("own", own[0])] if own else [])]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}, report


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    norm = torch.stack([g.norm() for g in other.values()]).norm()
    return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm() / norm)


@pytest.mark.parametrize("name", ["clip", "supervised", "triplet", "barlow"])  # autograd knows no keyed masks
def test_autograd_on_the_whole_batch_is_the_oracle(name: str) -> None:
    model, loss = Towers(), LOSSES[name]()
    own = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    optimizer = torch.optim.SGD([*model.parameters(), *own], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(*encode(model, batch()))
        value.backward()
        optimizer.step()
    found, report = gradients(3, LOSSES[name]())
    named = [*model.named_parameters(), *([("own", own[0])] if own else [])]
    assert difference(found, {n: p.grad for n, p in named if p.grad is not None}) < BAR
    assert abs(report.loss - value.item()) < BAR
    assert (report.weight, report.samples, report.micro_batches) == (1.0, SAMPLES, 4)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 10])
@pytest.mark.parametrize("name", LOSSES)
def test_any_micro_batch_with_dropout(name: str, micro_batch: int) -> None:
    whole, report = gradients("auto", LOSSES[name](), p=0.4)
    cut, cut_report = gradients(micro_batch, LOSSES[name](), p=0.4)
    assert difference(cut, whole) < BAR
    assert abs(cut_report.loss - report.loss) < BAR
    assert report.micro_batches == 1


def test_dropout_does_happen() -> None:
    assert difference(gradients(3, supervised, p=0.4)[0], gradients(3, supervised)[0]) > 0.01
    assert difference(gradients(3, dropping)[0], gradients(3, supervised)[0]) > 0.01


def test_native_dropout_is_replayed_in_the_second_pass() -> None:
    """Representation and gradient belong to the same masks: the loss falls by what the gradient says."""
    model = Towers(0.5)
    seen: list[list[Tensor]] = []

    def watching(model: nn.Module, piece: Any) -> tuple[Tensor, ...]:
        outputs = encode(model, piece)
        seen.append([output.detach() for output in outputs])
        return outputs

    step = wb.Step(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        wb.WholeBatchLoss(watching, supervised),
        micro_batch=4,
        dropout="native",
    )
    step(batch())
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(seen[0][0][:3], seen[1][0][:3])


@pytest.mark.filterwarnings("ignore::wholebatch.core.errors.PromiseWarning")
def test_draws_of_the_models_own_are_replayed() -> None:
    model, seen = Towers(), []

    def noisy(model: nn.Module, piece: Any) -> tuple[Tensor, ...]:
        a, b = model(piece)
        if step.calls:  # after a step without draws the generators are left alone
            a = a + 0.1 * torch.randn_like(a)
        seen.append(a.detach())
        return a, b, piece[2]

    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), wb.WholeBatchLoss(noisy, barlow), micro_batch=6)
    for _ in range(3):
        seen.clear()
        step(batch())
        assert torch.equal(seen[0], seen[2])
        assert torch.equal(seen[1], seen[3])


def test_every_step_has_masks_of_its_own_inside_the_loss() -> None:
    masks = []

    def watching(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        masks.append(F.dropout(torch.ones(SAMPLES, 4), 0.5))
        return (a * b).sum()

    model = Towers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = wb.Step(model, optimizer, wb.WholeBatchLoss(encode, watching), micro_batch=4)
    for _ in range(2):
        step(batch())
    seen = [mask for mask in masks if mask.any()]  # those of a probe are all kept, of value 1
    assert not torch.equal(seen[0], seen[-1])


def test_a_parameter_of_the_model_inside_the_loss_gets_its_gradient_once() -> None:
    def clip(model: Towers) -> Callable[..., Tensor]:
        return lambda a, b, labels: F.cross_entropy(model.log_scale.exp() * a @ b.T, torch.arange(len(a)))

    found = []
    for micro_batch in ("auto", 3):
        model = Towers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wb.Step(model, optimizer, wb.WholeBatchLoss(encode, clip(model)), micro_batch=micro_batch)(batch())
        found.append(model.log_scale.grad)
    assert found[0] is not None
    assert found[0].abs() > 1e-3
    torch.testing.assert_close(found[1], found[0], rtol=BAR, atol=0)


def test_a_temperature_that_encode_gives_is_taken_once() -> None:
    def with_scale(model: nn.Module, piece: Any) -> tuple[Tensor, ...]:
        return (*model(piece), model.log_scale.exp())

    def clip(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        return F.cross_entropy(scale * a @ b.T, torch.arange(len(a)))

    found = []
    for micro_batch in ("auto", 3):
        model = Towers()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wb.Step(model, optimizer, wb.WholeBatchLoss(with_scale, clip), micro_batch=micro_batch)(batch())
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert found[0]["log_scale"].abs() > 1e-3
    assert difference(found[1], found[0]) < BAR


def test_a_parameter_of_neither_is_refused() -> None:
    scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    model = Towers()
    loss = wb.WholeBatchLoss(encode, lambda a, b, labels: (scale * a * b).sum())
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, micro_batch=4)
    with pytest.raises(InputError, match=r"nn\.Module that holds it"):
        step(batch())


def test_running_statistics_move_once_per_sample() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.body = nn.BatchNorm1d(5), nn.Linear(5, 4)
            self.double()

        def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
            z = self.body(self.norm(batch[0]))
            return z, z

    counted = []
    for micro_batch in (4, "auto"):
        model = Normed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = wb.Step(model, optimizer, wb.WholeBatchLoss(encode, supervised), micro_batch=micro_batch)
        if micro_batch == 4:
            with pytest.warns(wb.PromiseWarning, match="norm"):
                step(batch())
        else:
            step(batch())
        counted.append(int(model.norm.num_batches_tracked))
    assert counted == [3, 1]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (lambda model, piece: None, "gave a NoneType"),
        (lambda model, piece: torch.cat(model(piece)), "representation 0 has shape"),
        (lambda model, piece: tuple(z.detach() for z in model(piece)), "depends on no representation"),
        (lambda model, piece: (*model(piece), torch.zeros(len(piece[0]), len(piece[0]))), "must be alike"),
    ],
)
def test_what_encode_may_give(broken: Any, expected: str) -> None:
    model = Towers()
    loss = wb.WholeBatchLoss(broken, lambda a, b, *rest: (a * b).sum())
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, micro_batch=4)
    with pytest.raises(LossError, match=expected):
        step(batch())


def test_what_the_loss_may_give() -> None:
    model = Towers()
    loss = wb.WholeBatchLoss(encode, lambda a, b, labels: (a * b).sum(1))
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, micro_batch=4)
    with pytest.raises(LossError, match=r"shape \(11,\); it gives one scalar"):
        step(batch())
    with pytest.raises(InputTypeError, match="loss is a NoneType"):
        wb.WholeBatchLoss(encode, None)  # type: ignore[arg-type]


def test_training_and_evaluating_with_it() -> None:
    model = Towers()
    loss = wb.WholeBatchLoss(encode, supervised)
    data = (list(batch()[:2]), batch()[2])

    def of_pair(model: nn.Module, piece: Any) -> tuple[Tensor, ...]:
        (left, right), labels = piece
        return (*model((left, right)), labels)

    loss = wb.WholeBatchLoss(of_pair, supervised)
    history = wb.train(
        model,
        data,
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        batch_size=SAMPLES,
        micro_batch=4,
        epochs=5,
        eval_data=data,
        display=False,
    )
    first, *_, last = history.select("train", "epoch")
    assert last["loss"] < first["loss"]
    assert "loss" in history.last("test")
