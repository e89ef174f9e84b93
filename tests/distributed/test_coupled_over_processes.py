"""A loss of the whole batch over processes: the update is that of one process, in float64."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb

BAR = 1e-12
SAMPLES = 13
PARTS = {2: [4, 9], 3: [0, 12, 1], 4: [0, 5, 0, 8]}


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 4))
        self.log_scale = nn.Parameter(torch.tensor(0.7))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=-1)


class Contrast(nn.Module):
    """Supervised contrast with a temperature of its own, the model's, labels that ride along, and dropout."""

    def __init__(self, model: Towers) -> None:
        super().__init__()
        self.inverse = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.model = [model]

    def forward(self, z: Tensor, labels: Tensor, kept: Tensor, scale: Tensor) -> Tensor:
        z = F.dropout(z, 0.2)
        logits = self.inverse * scale * self.model[0].log_scale.cos() * (z @ z.T)
        logits = logits.masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
        positive = labels[:, None] == labels[None]
        return -(torch.where(positive, logits.log_softmax(1), 0).sum(1) * kept).mean()


def encode(model: Towers, batch: Any) -> tuple[Tensor, ...]:
    return model(batch[0]), batch[1].to(torch.int16), batch[1] != 2, model.log_scale.exp()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(9)
    return torch.randn(SAMPLES, 5).double(), torch.randint(0, 3, (SAMPLES,))


def train(rank: int, size: int, engine: str = "flat", micro: int | str = 2) -> tuple[list[Tensor], list[Any]]:
    model = Towers()
    loss = Contrast(model)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1, momentum=0.9)
    step = wb.Step(
        model,
        optimizer,
        wb.WholeBatchLoss(encode, loss),
        micro_batch=micro,
        clip_norm=0.7,
        seed=4,
        engine=wb.parallel.engine(engine) if size > 1 else None,
    )
    start = sum(PARTS[size][:rank]) if size > 1 else 0
    stop = start + PARTS[size][rank] if size > 1 else SAMPLES
    x, y = data()
    reports = [step((x[start:stop], y[start:stop])) for _ in range(3)]
    read = [(report.loss, report.weight, report.samples, report.grad_norm) for report in reports]
    return [p.detach().clone() for p in (*model.parameters(), *loss.parameters())], read


@pytest.mark.parametrize(("size", "engine"), [(2, "flat"), (3, "flat"), (4, "flat"), (3, "ddp")])
def test_the_update_is_that_of_one_process(world: Any, size: int, engine: str) -> None:
    exact, reports = train(0, 1, micro="auto")
    before = [*Towers().parameters(), *Contrast(Towers()).parameters()]
    moved = torch.stack([(a - b).norm() for a, b in zip(exact, before, strict=True)]).norm()
    for weights, read in world(size, train, engine):
        assert torch.stack([(a - b).norm() for a, b in zip(weights, exact, strict=True)]).norm() < BAR * moved
        for ours, whole in zip(read, reports, strict=True):
            assert ours == pytest.approx(whole, rel=BAR)


def failing(rank: int, size: int) -> list[str]:
    """Whatever fails, and wherever, every process raises, and the next step works."""
    model = Towers()
    x, y = data()
    part = (x[:4], y[:4]) if rank else (x[4:], y[4:])
    messages, where = [], ""

    def breaking(model: Towers, batch: Any) -> tuple[Tensor, ...]:
        if rank == 1 and where == "first pass":
            raise RuntimeError("no encoding here")
        z = model(batch[0])
        if rank == 1 and where == "other shape":
            z = z[:, :2]
        if rank == 1 and where == "backward" and z.requires_grad:
            z.register_hook(lambda gradient: 1 / 0)
        return (z,)

    def loss(z: Tensor) -> Tensor:
        if where == "loss":
            raise RuntimeError("no loss here")
        return (z @ z.T).square().mean()

    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), wb.WholeBatchLoss(breaking, loss), micro_batch=2)
    for case in ("first pass", "other shape", "backward", "loss", "nowhere"):
        where = case
        try:
            step(part)
            messages.append("done")
        except Exception as error:
            messages.append(f"{type(error).__name__}: {error}")
    return messages


def test_errors_travel(world: Any) -> None:
    start = time.monotonic()
    first, second = world(2, failing)
    assert time.monotonic() - start < 50
    assert second[0] == "RuntimeError: no encoding here"
    assert "process 1 failed: RuntimeError: no encoding here" in first[0]
    assert "must be alike" in first[1]
    assert "must be alike" in second[1]
    assert "ZeroDivisionError" in second[2]
    assert "process 1 failed" in first[2]
    assert "no loss here" in first[3]
    assert "no loss here" in second[3]
    assert first[4] == second[4] == "done"
