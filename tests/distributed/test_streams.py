"""Streams, which every process reads for itself: where they are not the same ones, every process says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import wholebatch as wb


class Stream(IterableDataset):
    """So many samples; it fails at one of them where that is said."""

    def __init__(self, samples: int, fails: int | None = None, texts: bool = False) -> None:
        self.samples, self.fails, self.texts = samples, fails, texts

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(1)
        for number in range(self.samples):
            if number == self.fails:
                raise OSError("the line is cut")
            yield "no tensor" if self.texts else (torch.randn(4, generator=generator), number % 3)


def shuffled(seed: int) -> DataLoader:
    x, y = zip(*Stream(12), strict=True)
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(torch.stack(x), torch.tensor(y)), 4, shuffle=True, generator=generator)


def reading(rank: int, size: int) -> Any:
    """What every process says of each kind of stream; the second one has the other."""
    other = rank == 1
    kinds = {
        "same": lambda: Stream(10),
        "shorter": lambda: Stream(5 if other else 10),
        "ended": lambda: Stream(4 if other else 10),
        "cut": lambda: Stream(10, fails=6 if other else None),
        "cut everywhere": lambda: Stream(10, fails=6),
        "first": lambda: Stream(10, fails=0 if other else None),
        "no samples": lambda: Stream(10, texts=other),
        "another order": lambda: shuffled(7 * other),
        "after all": lambda: Stream(10),
    }
    said = {}
    for name, make in kinds.items():
        torch.manual_seed(2)
        model = nn.Linear(4, 3)
        options: dict[str, Any] = {"batch_size": 4, "epochs": 2, "display": False, "optimizer": torch.optim.SGD}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                history = wb.train(model, make(), loss=nn.CrossEntropyLoss(), **options)
                said[name] = [f"{len(history.records)} records", *(str(one.message) for one in caught)]
            except Exception as error:
                said[name] = [f"{type(error).__name__}: {error}"]
    return said


def test_streams_that_differ_are_found_by_all(world: Any) -> None:
    first, second = world(2, reading)
    assert (first["same"], second["same"]) == (["2 records"], ["2 records"])
    shorter = "DataError: the processes read different data: samples of batch 2 of the epoch: 4 in process 0, "
    assert first["shorter"] == second["shorter"]
    assert first["shorter"][0].startswith(f"{shorter}1 in process 1; ")
    assert first["ended"] == second["ended"]
    assert first["ended"][0].startswith(f"{shorter}none in process 1; ")
    for kind in ("cut", "first"):
        assert second[kind] == ["OSError: the line is cut"]
        assert first[kind] == ["PeerError: process 1 failed: OSError: the line is cut"]
    assert first["cut everywhere"] == second["cut everywhere"] == ["OSError: the line is cut"]
    assert second["no samples"][0].startswith("DataError: the batches of a stream are cut along axis 0")
    assert first["no samples"] == [f"PeerError: process 1 failed: {second['no samples'][0]}"]
    records, told = first["another order"]  # once, by the first process alone
    assert (records, second["another order"]) == ("2 records", ["2 records"])
    assert told.startswith("the processes read different samples from this stream, first in batch 1 of the epoch")
    assert first["after all"] == second["after all"] == ["2 records"]
