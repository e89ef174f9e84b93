"""The update of several processes is that of one process on the concatenated data, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb

BAR = 1e-12


class Branching(nn.Module):
    """A branch that few samples take, a parameter that nothing uses, a frozen one, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body, self.rare, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 3).requires_grad_(False)
        self.tied = self.body
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.tied(torch.tanh(self.body(x))))
        if (x[:, 0] > 40).any():
            chosen = x[:, 0] > 40
            y = y + torch.where(chosen[:, None], self.rare(y), 0)
        return self.frozen(y)


def plain() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def dropping() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double()


def sparse() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.EmbeddingBag(50, 3, sparse=True, mode="sum")).double()


def data(samples: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    x = torch.randn(samples, 4, dtype=torch.float64) * torch.arange(1, samples + 1, dtype=torch.float64)[:, None]
    y = torch.randint(0, 3, (samples,))
    y[1::3] = -100
    y[0] = 1
    return x, y


def pair(model: nn.Module, batch: Any) -> Any:
    x, y = batch
    weights = (y != -100).double()[:, None] * torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    return (model(x) - 1) ** 2, weights


CASES: dict[str, tuple[Callable[[], nn.Module], Any, list[int], dict[str, Any]]] = {
    "even": (plain, nn.CrossEntropyLoss(), [8, 8, 8, 8], {}),
    "uneven": (plain, nn.CrossEntropyLoss(), [3, 9, 1, 6], {}),
    "empty ranks": (plain, nn.CrossEntropyLoss(), [0, 2, 0, 3], {}),
    "weights": (plain, pair, [5, 2, 7, 1], {}),
    "sum": (plain, nn.CrossEntropyLoss(reduction="sum"), [4, 2, 1, 5], {}),
    "class weights": (plain, nn.CrossEntropyLoss(weight=torch.tensor([0.2, 2, 1.0]).double()), [4, 2, 1, 5], {}),
    "clipping": (plain, nn.CrossEntropyLoss(), [5, 2, 7, 1], {"clip_norm": 0.1}),
    "dropout": (dropping, nn.CrossEntropyLoss(), [5, 2, 0, 8], {}),
    "branching": (Branching, nn.CrossEntropyLoss(), [5, 2, 7, 26], {}),
    "sparse": (sparse, None, [3, 5, 0, 2], {}),
}


def sparse_loss(model: nn.Module, batch: Any) -> Tensor:
    return model((batch[0].abs() * 7).long() % 50) ** 2


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.0)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def train(name: str, rank: int, size: int, steps: int = 3, micro: int = 2) -> tuple[list[Tensor], Any]:
    """Three steps of one rank (or of the whole, for size 1); the parts are those of CASES cut to ``size`` ranks."""
    make, loss, parts, options = CASES[name]
    whole = sum(parts)
    if 1 < size < 4:
        parts = [sum(parts[r::size]) for r in range(size)]
    model = make()
    optimizer = (sgd if name == "sparse" else momentum)(model.parameters())
    step = wb.Step(model, optimizer, sparse_loss if loss is None else loss, micro_batch=micro, seed=1, **options)
    x, y = data(whole)
    start = 0 if size == 1 else sum(parts[:rank])
    stop = whole if size == 1 else start + parts[rank]
    reports = []
    for _ in range(steps):
        report = step((x[start:stop], y[start:stop]))
        reports.append((report.loss, report.weight, report.samples, report.grad_norm, report.skipped))
    gradients = [None if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    return [p.detach().clone() for p in model.parameters()], (reports, [g is None for g in gradients])


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    return math.sqrt(sum(float((x - y).norm() ** 2) for x, y in zip(a, b, strict=True)))


def every_case(rank: int, size: int) -> dict[str, Any]:
    return {name: train(name, rank, size) for name in CASES}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_case_is_that_of_one_process(world: Any, size: int) -> None:
    results = world(size, every_case)
    for name in CASES:
        exact, (reports, no_gradient) = train(name, 0, 1, micro=3)
        for of_rank in results:
            ours, (our_reports, our_none) = of_rank[name]
            before = [p.detach() for p in CASES[name][0]().parameters()]
            assert distance(ours, exact) < BAR * distance(exact, before), name
            assert our_none == no_gradient, name
            for a, b in zip(our_reports, reports, strict=True):
                assert a[:4] == pytest.approx(b[:4], rel=1e-12), name
                assert a[4] == b[4]
        assert all(torch.equal(a, b) for a, b in zip(results[0][name][0], results[-1][name][0], strict=True)), name


def failing(rank: int, size: int) -> list[str]:
    """Every rank raises, whatever went wrong on one of them, and the next step works."""
    messages = []
    x, y = data(6)
    bad_values = x.clone()
    bad_values[0, 0] = math.nan
    wrong: list[tuple[Any, Any]] = [
        ((x, y[:4]), (x, y)),  # lengths
        ((x, y + 77), (x, y)),  # labels
        ((x.float(), y), (x, y)),  # dtype
        ((bad_values, y), (x, y)),  # NaN
        (wb.MicroBatches([(x, y)]), (x, y)),  # draws without known samples
    ]
    for mine, others in wrong:
        model = dropping()
        step = wb.Step(model, sgd(model.parameters()), nn.CrossEntropyLoss())
        before = [p.clone() for p in model.parameters()]
        try:
            step(mine if rank == 1 else others)
            messages.append("nothing")
        except (wb.WholebatchError, RuntimeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        step((x, y))
    return messages


def test_errors_travel(world: Any) -> None:
    first, second, third = world(3, failing)
    assert "nothing" not in first + second + third
    assert first[0].startswith("PeerError: process 1 failed: BatchError")
    assert second[0].startswith("BatchError")
    assert third[1].startswith("PeerError: process 1 failed: LossError")
    assert all("not finite" in of[3] for of in (first, second, third))
    assert "samples=" in first[4]
    assert "samples=" in second[4]


def accumulate(rank: int, size: int) -> Any:
    x, y = data(10)
    model = plain()
    g = wb.GradientAccumulator(model)
    mine = slice(0, 7) if rank == 0 else slice(7, 10)
    g.add(F.cross_entropy(model(x[mine]), y[mine], reduction="none", ignore_index=-100), (y[mine] != -100).double())
    report = g.apply(sgd(model.parameters()))
    return [p.detach() for p in model.parameters()], report.weight, report.samples


def test_gradient_accumulator(world: Any) -> None:
    x, y = data(10)
    model = plain()
    F.cross_entropy(model(x), y).backward()
    sgd(model.parameters()).step()
    for ours, weight, samples in world(2, accumulate):
        assert all(torch.allclose(a, b, rtol=1e-13, atol=1e-15) for a, b in zip(ours, model.parameters(), strict=True))
        assert weight == int((y != -100).sum())
        assert samples == 10


def starting(rank: int, size: int) -> Any:
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model[1].running_mean.fill_(rank)
    wb.Step(model, sgd(model.parameters()), nn.MSELoss())
    own_loop = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    own_loop[1].running_mean.fill_(rank)
    wb.GradientAccumulator(own_loop)
    tensors = [t.detach().clone() for t in nn.Sequential(model, own_loop).state_dict().values()]
    said = []
    for make in (lambda other: wb.Step(other, sgd(other.parameters()), nn.MSELoss()), wb.GradientAccumulator):
        try:
            make(nn.Linear(4, 3 + (rank == 2)))
        except wb.InputError as error:
            said.append(str(error))
    return tensors, said


def differing(rank: int, size: int) -> Any:
    """The second process brings something else, each time; then all of them work together."""
    other, said = rank == 1, []
    for kind in ("order", "frozen", "rate", "clip", "seed", "dropout", "none"):
        model = plain()
        parameters = list(model.parameters())[:: -1 if other and kind == "order" else 1]
        model[0].bias.requires_grad_(not (other and kind == "frozen"))
        optimizer = torch.optim.SGD(parameters, lr=0.2 if other and kind == "rate" else 0.1)
        options: dict[str, Any] = {
            "clip": {"clip_norm": 1.0},
            "seed": {"seed": 7},
            "dropout": {"dropout": "native"},
        }
        try:
            step = wb.Step(model, optimizer, nn.CrossEntropyLoss(), **(options.get(kind, {}) if other else {}))
            said.append(str(step(data(4)).samples))
        except wb.InputError as error:
            said.append(str(error))
    return said


def test_a_step_finds_what_the_processes_do_not_share(world: Any) -> None:
    first, second = world(2, differing)
    assert first == second
    for line, name in zip(
        first, ("parameters of the optimizer", "trained parameters", "optimizer group 0 lr"), strict=False
    ):
        assert line.startswith(f"the processes were started differently: {name} is ")
    assert "clip_norm is 1.0 in process 1 and None in process 0" in first[3]
    assert "seed is 7 in process 1 and 0 in process 0" in first[4]
    assert "keyed is False in process 1 and True in process 0" in first[5]
    assert first[6] == "8"


def test_all_start_from_the_first_ones_weights_and_the_same_model(world: Any) -> None:
    results = world(3, starting)
    for tensors, message in results:
        assert all(torch.equal(a, b) for a, b in zip(tensors, results[0][0], strict=True))
        assert len(message) == 2
        for line in message:
            assert "process 0 has weight float32(3, 4) where process 2 has weight float32(4, 4)" in line


def sums(rank: int, size: int) -> Any:
    acc = wb.Accumulator("loss", "n")
    acc.add(torch.tensor(0.1 * (rank + 1)), rank + 1)
    accuracy = wb.Accuracy(3)
    accuracy.add(torch.eye(3)[[rank % 3]], torch.tensor([0]))
    mean = wb.Mean()
    mean.add(float(rank), weight=rank)
    whole = acc.all_reduce()
    again = acc.all_reduce()
    assert list(whole) == list(again)
    assert acc["n"] == rank + 1
    return whole["n"], whole["loss"], accuracy.all_reduce().confusion.tolist(), mean.all_reduce().value


def test_sums(world: Any) -> None:
    for n, loss, confusion, mean in world(3, sums):
        assert n == 6
        assert loss == pytest.approx(0.6, rel=1e-7)
        assert confusion == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
        assert mean == pytest.approx(5 / 3)
