"""What both engines must do alike: models, losses, cuts, optimizers; each case's oracle is one process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch as wb
from wholebatch.core import cuts
from wholebatch.parallel import replicate
from wholebatch.step import over_processes

# name: bytes of a bucket, and of a gradient that travels by itself
ENGINES = {
    "flat": (8 << 20, 1 << 20),
    "flat, many buckets": (100, 100),
    "ddp": (8 << 20, 1 << 20),
    "ddp, many buckets": (100, 100),
}


def engine(name: str) -> Any:
    over_processes.BUCKET_BYTES, over_processes.ALONE_BYTES = ENGINES[name]
    replicate.BUCKET_MB = ENGINES[name][0] / 2**20  # type: ignore[assignment]
    return wb.parallel.engine(name.partition(",")[0])


class Branching(nn.Module):
    """A branch that few samples take, parameters that nothing uses, frozen ones, tied ones, a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.rare, self.body, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 3).requires_grad_(False)
        self.tied = self.body
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = torch.tanh(self.tied(torch.tanh(self.body(x))))
        chosen = x[:, 0] > 9
        if chosen.any():
            y = y + torch.where(chosen[:, None], self.rare(y), 0)
        return self.frozen(y)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return F.dropout(torch.tanh(self.first(x)), 0.5, True)

        x = x.requires_grad_() if self.reentrant else x
        return self.second(checkpoint(inner, x, use_reentrant=self.reentrant))


class Tokens(nn.Module):
    """Sequences of tokens: (n, 5) numbers to (n, classes, 5) scores."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x)).transpose(1, 2)


class Scaled(nn.Module):
    """A loss that has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output * self.scale - F.one_hot(target.clamp(min=0), 3)) ** 2


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().double()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))


def normalised() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model[1].eval()
    return model


def data(samples: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    x = torch.randn(samples, 4, dtype=torch.float64) * torch.arange(1, samples + 1, dtype=torch.float64)[:, None]
    y = torch.randint(0, 3, (samples,))
    y[1::3] = -100
    y[0] = 1
    return x, y


def ignored(samples: int) -> tuple[Tensor, Tensor]:
    x, y = data(samples)
    return x, torch.full_like(y, -100)


def tokens(samples: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(6)
    x, y = torch.randint(0, 7, (samples, 5)), torch.randint(0, 7, (samples, 5))
    for row in range(samples):
        y[row, : row % 6] = -100
    return x, y


def pair(model: nn.Module, batch: Any) -> Any:
    x, y = batch
    weights = (y != -100).double()[:, None] * torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    return (model(x) - 1) ** 2, weights


def mean(model: nn.Module, batch: Any) -> Any:
    """A mean and its weight, which is 0 for half of the pieces."""
    x, _ = batch
    kept = x[:, 0].abs() > 5
    return (model(x[kept]) ** 2).mean(), int(kept.sum()) * 3


def twice(model: nn.Module, batch: Any) -> Tensor:
    """The model's parts, and the model twice."""
    x, _ = batch
    return (model[0](x).sum(1) + (model(x) * model(-x)).sum(1)) ** 2 / 100


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1)


def grouped(parameters: Any) -> torch.optim.Optimizer:
    """Matrices and vectors apart, so that no order of gradients fits."""
    parameters = list(parameters)
    decayed = {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1}
    return torch.optim.SGD([decayed, {"params": [p for p in parameters if p.ndim < 2]}], lr=0.01, momentum=0.9)


@dataclass(frozen=True)
class Case:
    """Three steps; ``parts`` are the samples of four processes, which fewer processes share."""

    parts: tuple[int, ...]
    model: Callable[[], nn.Module] = plain
    loss: Any = field(default_factory=nn.CrossEntropyLoss)
    data: Callable[[int], tuple[Tensor, Tensor]] = data
    optimizer: Callable[[Any], torch.optim.Optimizer] = momentum
    options: dict[str, Any] = field(default_factory=dict)
    window: bool = False  # piece by piece, in pieces of 3
    micro: int | str = 2


CLASS_WEIGHTS = torch.tensor([0.2, 2, 1.0]).double()
CASES: dict[str, Case] = {
    "even": Case((8, 8, 8, 8)),
    "whole parts at once": Case((8, 8, 8, 8), micro="auto"),
    "64 samples, contiguous": Case((64,), micro=5),
    "uneven": Case((3, 9, 1, 6)),
    "two samples": Case((0, 2, 0, 0), dropping),
    "the last process alone": Case((0, 0, 0, 3)),
    "tokens": Case((3, 1, 5, 2), Tokens, data=tokens),
    "class weights": Case((4, 2, 1, 5), loss=nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)),
    "weights": Case((5, 2, 7, 1), loss=pair),
    "means, some over nothing": Case((5, 2, 7, 1), loss=mean, micro=1),
    "sum": Case((4, 2, 1, 5), loss=nn.CrossEntropyLoss(reduction="sum")),
    "weight 0": Case((4, 2, 1, 5), data=ignored),
    "clipping": Case((5, 2, 7, 1), options={"clip_norm": 0.1}),
    "dropout": Case((5, 2, 0, 8), dropping),
    "windows": Case((5, 2, 0, 8), dropping, window=True),
    "windows, pieces as they are": Case((5, 2, 0, 8), window=True, micro="auto"),
    "branching": Case((5, 2, 3, 6), Branching),
    "branching, adam": Case((5, 0, 3, 6), Branching, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-2)),
    "groups": Case((5, 2, 3, 6), Branching, optimizer=grouped),
    "loss with a parameter": Case((3, 9, 1, 6), loss=Scaled()),
    "called twice": Case((3, 0, 1, 6), loss=twice),
    "checkpointed": Case((3, 9, 1, 6), Checkpointed),
    "batch norm in evaluation mode": Case((3, 9, 1, 6), normalised),
    "everything frozen but a bias": Case((3, 9, 1, 6), lambda: frozen_but_bias()),
}


def frozen_but_bias() -> nn.Module:
    model = plain().requires_grad_(False)
    model[2].bias.requires_grad_(True)
    return model


def part(case: Case, rank: int, size: int) -> tuple[int, int]:
    """Where this process's part begins and ends."""
    if len(case.parts) == 1:
        bounds = cuts.bounds(case.parts[0], math.ceil(case.parts[0] / size))
        return list(bounds)[rank]
    parts = [sum(case.parts[r::size]) for r in range(size)]
    return sum(parts[:rank]), sum(parts[: rank + 1])


def train(case: Case, rank: int, size: int, made: Any = None, steps: int = 3, micro: Any = None) -> Any:
    """Weights, reports, which parameters have no gradient, buffers, and names of the state."""
    model = seeded(case.model)
    loss = seeded(type(case.loss)) if isinstance(case.loss, Scaled) else case.loss
    held = [*model.parameters(), *(loss.parameters() if isinstance(loss, Scaled) else [])]
    optimizer = case.optimizer(held)
    micro = case.micro if micro is None else micro
    step = wb.Step(model, optimizer, loss, micro_batch=micro, seed=1, engine=made, **case.options)
    x, y = case.data(sum(case.parts))
    start, stop = part(case, rank, size)
    x, y = x[start:stop], y[start:stop]
    reports = []
    for _ in range(steps):
        pieces = zip(x.split(3), y.split(3), strict=True) if len(x) else ()
        report = step(wb.MicroBatches(pieces, samples=len(x)) if case.window and made is not None else (x, y))
        reports.append((report.loss, report.weight, report.samples, report.grad_norm, report.skipped))
    return {
        "weights": [p.detach().clone() for p in held],
        "reports": reports,
        "none": [p.grad is None for p in held],
        "gradients": [torch.zeros(()) if p.grad is None else p.grad.clone() for p in held],
        "buffers": [b.clone() for b in model.buffers()],
        "names": list(model.state_dict()),
    }


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    return math.sqrt(sum(float((x - y).norm() ** 2) for x, y in zip(a, b, strict=True)))
