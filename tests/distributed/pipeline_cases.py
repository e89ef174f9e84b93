"""What a pipeline must do as one process does: models, losses, data; each case's oracle is one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch as wb
from wholebatch.core.cuts import parts

BATCHES = (13, 13, 9, 1)  # samples of the steps, over and over: 4 + 4 + 4 + 1, a short batch, one sample


class Skipping(nn.Module):
    """What nobody here wrote: a skip around a cut, a size that crosses it, a tied table, dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.start = nn.Parameter(torch.zeros(1, 1, 6))
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)

    def forward(self, x: Tensor, scale: Tensor | None = None, factor: int = 2) -> Tensor:
        h = self.table(x)
        if scale is not None:
            h = h * scale
        h = torch.cat([self.start.expand(h.shape[0], -1, -1), h], 1)
        kept = h
        for block in self.blocks:
            h = h + F.dropout(torch.tanh(block(h)), 0.3, self.training)
        h = self.frozen(h + kept * factor)[:, 1:]
        return F.linear(h, self.table.weight).transpose(1, 2)


class Recomputed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(width, width), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda x: self.drop(torch.tanh(self.linear(x))), x, use_reentrant=False)


def dropping() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.ReLU(inplace=True)),
        nn.Linear(6, 6),
        nn.Dropout(0.3),
        nn.Tanh(),
        Recomputed(6),
        nn.Linear(6, 6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(6, 3),
    )


def sequences_first() -> nn.Module:
    """Samples on axis 1 between the stages, 4 tokens as there are samples in a micro-batch."""

    class Flip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1)

    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.3)
    layer2 = nn.TransformerEncoderLayer(8, 2, 16, 0.3)
    return nn.Sequential(nn.Linear(2, 8), Flip(), layer, layer2, Flip(), nn.Flatten(), nn.Linear(32, 3))


class Aside(nn.Module):
    """A value that hangs on weights alone crosses a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.last = (nn.Linear(4, width) for width in (4, 4, 4, 3))
        self.shift = nn.Linear(2, 4)
        self.register_buffer("ones", torch.ones(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.second(self.first(x)))
        shift = self.shift(self.ones)
        return self.last(torch.tanh(self.third(h)) + shift.expand(h.shape[0], -1))


def of_numbers() -> nn.Module:
    """The first stage has no weights, and what crosses into the second has no gradient."""

    class Next(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1) % 7

    class Classes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(1, 2)

    return nn.Sequential(Next(), nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7), Classes())


def tokens_of(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x, y = torch.randint(0, 7, (samples, 5)), torch.randint(0, 7, (samples, 5))
    for row in range(samples):
        y[row, : row % 6] = -100
    return x, y


def rows_of(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(samples, 4, dtype=torch.float64) * torch.linspace(0.5, 2, samples, dtype=torch.float64)[:, None]
    y = torch.randint(0, 3, (samples,))
    y[1::3] = -100
    return x, y


def places_of(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(samples, 4, 2, dtype=torch.float64), torch.randint(0, 3, (samples,))


def pair(model: nn.Module, batch: Any) -> Any:
    """Losses with weights, by a function; a keyword goes to the model."""
    x, y = batch
    scale = (1 + x[:, :1, None] / 10).double()
    losses = F.cross_entropy(model(x, scale=scale), y.clamp(min=0), reduction="none")
    return losses, (y != -100).double() * torch.arange(1, 6, dtype=torch.float64)


class Scaled(nn.Module):
    """A loss that has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return (output * self.scale - F.one_hot(target.clamp(min=0), 3)) ** 2


@dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module] = dropping
    loss: Any = field(default_factory=lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 2, 1.0]).double()))
    data: Callable[[int, int], tuple[Tensor, Tensor]] = rows_of
    parallel: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    micro: int | str = 4
    window: bool = False
    options: dict[str, Any] = field(default_factory=lambda: {"clip_norm": 0.2})


CASES: dict[str, Case] = {
    "1f1b": Case(parallel={"schedule": "1f1b"}),
    "gpipe, a stage that begins in place": Case(parallel={"schedule": "gpipe", "cuts": ["6"]}),
    "named cuts, somebody's model": Case(
        Skipping, data=tokens_of, loss=nn.CrossEntropyLoss(), parallel={"cuts": ["blocks.1"]}
    ),
    "a function with weights": Case(Skipping, pair, tokens_of, {"cuts": ["blocks.2"], "schedule": "gpipe"}),
    "windows, auto": Case(parallel={}, window=True, steps=4),
    "auto": Case(parallel={}, micro="auto", steps=4),
    "sequences first": Case(sequences_first, nn.CrossEntropyLoss(), places_of, {"cuts": ["3"]}, steps=4, options={}),
    "a loss with a parameter": Case(loss=Scaled(), steps=4),
    "a sum": Case(loss=nn.CrossEntropyLoss(reduction="sum"), steps=4, options={}),
    **{  # in threes, 13 are 5 micro-batches: no multiple of the processes
        name: Case(parallel={"schedule": name}, steps=4, micro=3)
        for name in ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
    },
    "gradients in another order": Case(
        sequences_first, nn.CrossEntropyLoss(), places_of, {"cuts": ["2", "3", "4"], "schedule": "ZBVZeroBubble"}, 4
    ),
    "a value of weights alone": Case(
        Aside, parallel={"cuts": ["second", "third", "last"], "schedule": "InterleavedZeroBubble"}, steps=4
    ),
    "numbers cross": Case(
        of_numbers, nn.CrossEntropyLoss(), tokens_of, {"cuts": ["1", "2", "3"], "schedule": "DualPipeV"}, 4
    ),
    "a loss with a parameter, later": Case(loss=Scaled(), parallel={"schedule": "DualPipeV"}, steps=4),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return make().double()


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def step_of(case: Case, engine: Any, micro: Any = None) -> tuple[nn.Module, wb.Step]:
    model = seeded(case.model)
    loss = seeded(type(case.loss)) if isinstance(case.loss, Scaled) else case.loss
    held = [*model.parameters(), *(loss.parameters() if isinstance(loss, Scaled) else [])]
    micro = case.micro if micro is None else micro
    return model, wb.Step(model, momentum(held), loss, micro_batch=micro, seed=1, engine=engine, **case.options)


def train(case: Case, engine: Any = None, micro: Any = None, first: int = 0, part: tuple[int, int] = (0, 1)) -> Any:
    """Weights, reports, and the state of the optimizer; ``part`` is this process's place among those with samples."""
    model, step = step_of(case, engine, micro)
    reports = []
    for number in range(case.steps):
        samples = BATCHES[number % len(BATCHES)]
        x, y = case.data(samples, number)
        start, stop = parts(samples, *part)
        x, y = x[start:stop], y[start:stop]
        if case.window and engine is not None:
            pieces = zip(x.split(3), y.split(3), strict=True) if len(x) else ()
            report = step(wb.MicroBatches(pieces, samples=len(x)))
        else:
            report = step((x, y))
        reports.append((report.loss, report.weight, report.samples, report.grad_norm, report.skipped))
    with step.whole():
        state = step.optimizer.state_dict()["state"]
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        momenta = {number: of["momentum_buffer"].clone() for number, of in state.items()}
    return {"weights": weights, "reports": reports, "momenta": momenta}
