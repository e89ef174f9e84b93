"""One of two processes runs out of memory: both make the window again, and the result is that of one undisturbed."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import engine_cases
import pytest
import torch
from engine_cases import ENGINES, distance
from torch import Tensor, nn

import wholebatch as wb

N, SPLIT, MICRO = 13, 7, 3  # the first process has 7 samples in three micro-batches, the second 6 in two
BAR = 1e-12
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(1)).double() * torch.arange(1, N + 1)[:, None]
Y = torch.arange(N) % 3


class Fails(nn.Module):
    """Raises in the forward of that number, or in its backward."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.at: tuple[str, int] = ("", -1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and self.at[0] == "backward":
            return x
        self.forwards += 1
        if self.at == ("forward", self.forwards):
            raise torch.OutOfMemoryError("injected")
        if self.at == ("backward", self.forwards):
            x = x.clone()
            x.register_hook(self._fail)
        return x

    def _fail(self, gradient: Tensor) -> None:
        raise torch.OutOfMemoryError("injected")


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), Fails(), nn.Dropout(0.4), nn.Linear(6, 5), nn.Linear(5, 3)
    ).double()


def coupled() -> Any:
    def encode(m: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(m(batch[0])), batch[1]

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z @ z.T / 0.3, labels)

    return wb.WholeBatchLoss(encode, loss)


def steps(rank: int, size: int, kind: str | None, at: tuple[str, int], loss: Any, **options: Any) -> dict[str, Any]:
    """Two steps with a failure in the first, on the second process."""
    m = model()
    step = wb.Step(
        m,
        torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
        loss,
        engine=None if kind is None else engine_cases.engine(kind),
        clip_norm=3.0,
        **{"micro_batch": MICRO, **options},
    )
    part = slice(0, N) if size == 1 else slice(0, SPLIT) if rank == 0 else slice(SPLIT, N)
    m[2].at = at if rank == size - 1 else ("", -1)
    told: list[int] = []
    step.watch = lambda output, target: told.append(len(output))
    torch.manual_seed(11 + rank)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reports = [step((X[part], Y[part])) for _ in range(2)]
        values = [(r.loss, r.weight, r.samples, r.grad_norm) for r in reports]
    messages = [str(w.message) for w in said if w.category is wb.OutOfMemoryWarning]
    return {
        "weights": [p.detach().clone() for p in m.parameters()],
        "values": values,
        "pieces": [r.micro_batches for r in reports],
        "said": messages,
        "told": sum(told),
        "drawn": torch.rand(2),
        "calls": step.calls,
    }


CASES = [("classes", way, number) for way in ("forward", "backward") for number in (1, 2)]
CASES += [("coupled", "forward", number) for number in (1, 2, 3, 4)]  # two of each pass
CASES += [("coupled", "backward", number) for number in (2, 3)]  # the first pass has none


def loss_of(name: str) -> Any:
    return coupled() if name == "coupled" else nn.CrossEntropyLoss()


def every_case(rank: int, size: int) -> Any:
    return {(kind, *case): steps(rank, size, kind, case[1:], loss_of(case[0])) for kind in ENGINES for case in CASES}


@cache
def oracle(loss: str) -> dict[str, Any]:
    return steps(0, 1, None, ("", -1), loss_of(loss), micro_batch=5)


def test_at_every_micro_batch_of_one_process(world: Any) -> None:
    ranks = world(2, every_case)
    for key, first in ranks[0].items():
        exact = oracle(key[1])
        scale = distance(exact["weights"], [0 * w for w in exact["weights"]])
        for rank, own in enumerate((first, ranks[1][key])):
            assert distance(own["weights"], exact["weights"]) <= BAR * scale, key
            for ours, theirs in zip(own["values"], exact["values"], strict=True):
                assert ours == pytest.approx(theirs, rel=BAR), key
            assert own["pieces"] == [13, 13], key  # of one sample each, in both processes
            assert own["calls"] == 2
            if key[1] == "classes":
                assert own["told"] == 2 * (SPLIT if rank == 0 else N - SPLIT), key
            torch.manual_seed(11 + rank)
            assert torch.equal(own["drawn"], torch.rand(2)), key
        assert len(first["said"]) == 1, key
        assert "on process 1 with 3 samples" in first["said"][0]
        assert not ranks[1][key]["said"]


def no_way_out(rank: int, size: int) -> list[str]:
    """One sample that does not fit, a window that is used up, and an error beside it; then a step that works."""
    found = []
    for kind in ENGINES:
        m = model()
        step = wb.Step(
            m,
            torch.optim.SGD(m.parameters(), lr=0.1),
            nn.CrossEntropyLoss(),
            engine=engine_cases.engine(kind),
            micro_batch=1,
        )
        fails = m[2]

        def attempt(batch: Any, step: Any = step) -> None:
            try:
                step(batch, position=5 * rank)
            except Exception as error:
                found.append(f"{type(error).__name__}: {error}")

        whole = (X[:4], Y[:4])
        fails.at = ("forward", fails.forwards + 2) if rank == 1 else ("", -1)
        attempt(whole)
        step.size.limit = 4
        fails.at = ("backward", fails.forwards + 1) if rank == 1 else ("", -1)
        attempt(wb.MicroBatches(iter([whole]), samples=4) if rank == 0 else whole)
        fails.at = ("forward", fails.forwards + 1) if rank == 1 else ("", -1)
        attempt(whole if rank == 1 else (X[:4], Y[:3]))
        fails.at = ("", -1)
        before = [p.detach().clone() for p in m.parameters()]
        attempt(whole)
        found.append(str(distance(before, [p.detach() for p in m.parameters()]) > 0))
    return found


def test_every_process_raises_where_there_is_no_way_out(world: Any) -> None:
    first, second = world(2, no_way_out)
    assert len(first) == len(second) == 4 * len(ENGINES)
    for place in range(0, len(first), 4):
        alone = "OutOfMemoryError: out of memory in step 1 on process 1 with one sample in the micro-batch: injected"
        assert first[place].startswith(alone)
        assert second[place].startswith(alone)
        for of in (first, second):
            assert "its window on process 0 is an iterator, which is used up" in of[place + 1]
        assert first[place + 2].startswith("BatchError")
        assert second[place + 2].startswith("PeerError: process 0 failed: BatchError")
        assert first[place + 3] == second[place + 3] == "True"


def automatic(rank: int, size: int) -> list[Any]:
    """The processes find other sizes, or one has nothing to show, or gives its window piece by piece."""
    from wholebatch.step.micro_batch_size import Finder

    Finder.find = lambda self, batch, samples, measure: min(samples, (4, 2)[rank])  # type: ignore[method-assign]
    found = []
    for batch in (
        (X[:6], Y[:6]),
        (X[:6], Y[:6]) if rank == 0 else (X[:0], Y[:0]),
        (X[:6], Y[:6]) if rank == 1 else wb.MicroBatches([(X[:6], Y[:6])], samples=6),
        (X[:2], Y[:2]) if rank == 1 else (X[:3], Y[:3]),
    ):
        m = model()
        step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss())
        found.append([step(batch).micro_batches for _ in range(2)])
    return found


def test_auto_is_the_same_size_everywhere(world: Any) -> None:
    first, second = world(2, automatic)
    assert first == second == [[6, 6], [2, 2], [5, 5], [2, 2]]
