"""Grouped batch norm on several processes, in float64: the update and the statistics of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.cuts import parts
from wholebatch.step.recompute import recompute

BAR = 1e-12
CASES = ("flat", "ddp", "whole", "recomputed", "loader", "train", "whole recomputed", "coupled")


def contrast(z: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z @ z.T, labels)


COUPLED = wb.WholeBatchLoss(lambda model, batch: (model(batch[0]), batch[1]), contrast)


def data(samples: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 6, generator=draw, dtype=torch.float64) * 3 + 1, torch.arange(samples) % 3


def model_of(group: int | None) -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Sequential(
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.Dropout(0.3),
        nn.ReLU(),
        nn.BatchNorm1d(5, momentum=None),
        nn.Linear(5, 3),
    )
    return wb.convert_batchnorm(layers.double(), group=group)


def trained(name: str, rank: int, size: int) -> list[Tensor]:
    model = model_of(None if name.startswith("whole") else 4)
    if name.endswith("recomputed"):
        recompute(model, "1, 4")
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    if name == "train":
        wb.train(
            model,
            data(50),
            loss=nn.CrossEntropyLoss(),
            optimizer=sgd,
            batch_size=21,
            epochs=1,
            micro_batch=4,
            display=False,
        )
    else:
        engine = wb.parallel.engine("ddp" if name == "ddp" else "flat", model)
        micro = 100 if name.startswith("whole") else 4 * size
        micro = 8 if name == "coupled" else micro  # one micro-batch, encoded once, beside two that are encoded twice
        loss = COUPLED if name == "coupled" else nn.CrossEntropyLoss()
        step = wb.Step(model, sgd, loss, micro_batch=micro, engine=engine)
        if name == "loader":
            for window in wb.data.BatchLoader(data(50), 21, align=4).windows(4):
                step(wb.MicroBatches(window, window.samples), position=window.position)
        for samples in (21, 9, 33) if name != "loader" else ():
            first, last = parts(samples, rank, size, 1 if name.startswith("whole") else 4)
            step(tuple(part[first:last] for part in data(samples)), position=first)
    return [t.detach().double() for t in (*model.parameters(), *model.buffers())]


def every_case(rank: int, size: int) -> dict[str, list[Tensor]]:
    return {name: trained(name, rank, size) for name in CASES}


@pytest.mark.parametrize("size", [2, 3])
def test_every_case_is_that_of_one_process(world: Any, size: int) -> None:
    ranks = world(size, every_case)
    for name in CASES:
        one, before = trained(name, 0, 1), model_of(4).state_dict().values()
        assert max(float((a - b).norm()) for a, b in zip(one[:4], list(before)[:4], strict=True)) > 1e-3
        for ours in ranks:
            for a, b in zip(ours[name], one, strict=True):
                assert float((a - b).norm()) <= BAR * (1 + float(b.norm())), name


def failing(rank: int, size: int) -> list[str]:
    """What each way of failing says, on every process; none waits for ever, and the next step is made."""
    said = []
    for way in ("loss", "layer", "empty", "apart", "cut", "ddp", "batch"):
        model = model_of(4 if way == "apart" else None)
        if way == "layer" and rank == 1:
            model[3].register_forward_hook(lambda *_: 1 / 0)
        broken = way == "loss" and rank == 1

        def loss(model: nn.Module, batch: Any, broken: bool = broken) -> Tensor:
            found = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
            return found / 0 * (1 // 0) if broken else found

        engine = wb.parallel.engine("ddp" if way == "ddp" else "flat", model)
        step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, micro_batch=4, engine=engine)
        x, y = data(4)
        batch: Any = (x[:0], y[:0]) if way == "empty" and rank == 1 else (x[:3], y[:3]) if way == "apart" else (x, y)
        batch = (x, y[:2]) if way == "batch" and rank == 1 else data(8) if way == "cut" and rank == 1 else batch
        try:
            step(batch)
            said.append("nothing")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def test_who_fails_is_told_to_all_and_nobody_waits(world: Any) -> None:
    first, second = world(2, failing, timeout=60)
    ways = dict(
        zip(("loss", "layer", "empty", "apart", "cut", "ddp", "batch"), zip(first, second, strict=True), strict=True)
    )
    assert "ZeroDivisionError" in ways["loss"][1]
    assert "process 1 failed" in ways["loss"][0]
    assert "ZeroDivisionError" in ways["layer"][1]
    assert "process 1 failed" in ways["layer"][0]
    assert all("process 1 has no samples" in said for said in ways["empty"])
    assert "begins at sample 3" in ways["apart"][1]
    assert "process 1 failed" in ways["apart"][0]
    assert "cannot cut the 8 samples" in ways["cut"][1]
    assert "process 1 failed" in ways["cut"][0]
    assert all("parallel='flat'" in said for said in ways["ddp"])
    assert "BatchError" in ways["batch"][1]
    assert "process 1 failed" in ways["batch"][0]
