"""``check_step`` over real processes: the whole batch is that of all, and the bridge to DistributedDataParallel."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import wholebatch as wb

PAGE = Path(__file__).parents[2] / "docs" / "bridges.md"
Pairs = list[tuple[Tensor, Tensor]]


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3)).double()


def part(rank: int, sizes: list[list[int]]) -> Pairs:
    torch.manual_seed(10 + rank)
    return [(torch.randn(n, 8, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in sizes[rank]]


def averaging(model: nn.Module, batches: Pairs) -> None:
    """DistributedDataParallel with the mean of its own part on each process."""
    engine, optimizer = DistributedDataParallel(model), SGD(model.parameters(), lr=0.1)
    count = max(1, sum(int((y != -100).sum()) for _, y in batches))
    for number, (x, y) in enumerate(batches, 1):
        engine.require_backward_grad_sync = number == len(batches)
        (F.cross_entropy(engine(x), y, reduction="sum") / count).backward()
    optimizer.step()
    optimizer.zero_grad()


def bridge() -> Any:
    section = PAGE.read_text("utf-8").partition("## DistributedDataParallel")[2].partition("\n## ")[0]
    found = re.search(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {"torch": torch, "F": F, "wb": wb}
    exec(compile(found[1], str(PAGE), "exec"), names)
    return names["take_step"]


def checked(rank: int, size: int, which: str, sizes: list[list[int]]) -> list[tuple[str, float, bool]]:
    loop = averaging if which == "averaging" else bridge()
    result = wb.check_step(loop, net(), part(rank, sizes), nn.CrossEntropyLoss(), show=False)
    return [(case.name.partition(",")[0], case.error, case.ok) for case in result.cases]


def test_the_bridge_is_exact_on_uneven_parts(world: Callable[..., list[Any]]) -> None:
    for cases in world(2, checked, "bridge", [[4, 3, 5], [2, 6, 1]]):
        assert len(cases) >= 6
        assert all(ok for _, _, ok in cases), cases
        assert max(error for _, error, _ in cases) < 1e-14


def test_averaging_over_processes_is_found(world: Callable[..., list[Any]]) -> None:
    for cases in world(2, checked, "averaging", [[4, 3, 5], [2, 6, 1]]):
        assert not cases[0][2]
        assert cases[0][1] > 0.05
    for cases in world(2, checked, "averaging", [[4, 4], [4, 4]]):
        assert cases[0][2]
        assert cases[1][2]


def refused(rank: int, size: int) -> str:
    engine = DistributedDataParallel(net())
    try:
        wb.GradientAccumulator(nn.Sequential(engine))
    except wb.InputError as error:
        return str(error)
    return ""


def test_an_engine_anywhere_inside_is_refused(world: Callable[..., list[Any]]) -> None:
    assert all("DistributedDataParallel, which averages" in said for said in world(2, refused))
