"""What several processes add to the estimate of the noise scale: the first micro-batch of each, and the whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import engine_cases
import pytest
import resuming
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.record import Observer


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (11,), generator=generator)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(6, 3).double()


def added(rank: int, size: int) -> Any:
    """(small, big, first, samples), by engine and micro-batch, of parts of 4 and 7 samples."""
    x, y = data()
    found = {}
    part = slice(0, 4) if rank == 0 else slice(4, 11)
    for kind in engine_cases.ENGINES:
        for micro in (3, "auto"):
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            engine = engine_cases.engine(kind)
            step = wb.Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=micro, engine=engine)
            step((x[part], y[part]))
            found[kind, micro] = [float(one) for one in step.noise._waiting[-1]]
    return found


def squared(part: slice) -> float:
    model, (x, y) = net(), data()
    nn.functional.cross_entropy(model(x[part]), y[part]).backward()
    return float(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))


def test_each_process_brings_its_first_micro_batch(world: Any) -> None:
    ranks = world(2, added)
    assert ranks[0] == ranks[1]
    for (_, micro), found in ranks[0].items():
        firsts = [slice(0, 4), slice(4, 11)] if micro == "auto" else [slice(0, 3), slice(4, 7)]
        counts = [one.stop - one.start for one in firsts]
        small = sum(n * squared(one) for n, one in zip(counts, firsts, strict=True)) / sum(counts)
        by_hand = [math.sqrt(small), math.sqrt(squared(slice(0, 11))), sum(counts) / 2, 11]
        assert found == pytest.approx(by_hand, rel=1e-12)


class Messages(Observer):
    """What a run says at its end."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, text: str) -> None:
        self.said.append(text)


def of_a_split_model(rank: int, size: int, folder: str) -> list[str]:
    found = []
    for number, parallel in enumerate(({"shard": 2}, {"tensor": 2, "plan": {"1": "colwise_whole"}}, {"pipeline": 2})):
        told = Messages()
        resuming.train(f"{folder}/{number}", epochs=1, observers=[told], parallel=parallel)
        found += told.said
    return found


def test_a_split_model_says_why_there_is_no_noise_scale(world: Any, tmp_path: Path) -> None:
    first, _ = world(2, of_a_split_model, str(tmp_path))
    why = "the model is split over the processes: none has the whole gradient of a micro-batch"
    assert first == [f"gradient noise scale: not measured ({why})"] * 3
