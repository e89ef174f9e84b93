"""Training and evaluating on several processes is what one process does."""

from __future__ import annotations

import time
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import wholebatch as wb
from wholebatch.core.record import Observer

SAMPLES = 29


def data(samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(samples, 4, dtype=torch.float64), torch.arange(samples) % 3


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)).double()


class Samples(Dataset):
    """Map-style, collated sample by sample."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = data()
        return x[index], y[index]


class Counting(Observer):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told = 0

    def record(self, record: Any) -> None:
        self.told += 1


def training(rank: int, size: int, kind: str = "arrays", parallel: Any = None) -> Any:
    model = net()
    given = {
        "arrays": lambda: data(),
        "samples": lambda: Samples(),
        "stream": lambda: DataLoader(Samples(), batch_size=8),
    }[kind]()
    counting = Counting()
    history = wb.train(
        model,
        given,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        batch_size=8,
        epochs=3,
        micro_batch=3,
        eval_data=data(10),
        schedule=wb.CosineScheduler(12, base_lr=0.1),
        log_every=2,
        observers=[counting],
        parallel=parallel,
        display=False,
    )
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in history]
    return [p.detach() for p in model.parameters()], records, counting.told


def every_kind(rank: int, size: int) -> Any:
    engines = {"arrays": "ddp", "samples": {"data": size, "engine": "ddp"}, "stream": "flat"}
    return {kind: training(rank, size, kind, engine) for kind, engine in engines.items()}


def exactly(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the one estimate that depends on how batches are cut."""
    return {name: value for name, value in record.items() if not name.startswith("noise_")}


@pytest.mark.parametrize("size", [2, 3])
def test_training_is_that_of_one_process(world: Any, size: int) -> None:
    results = world(size, every_kind)
    for kind in ("arrays", "samples", "stream"):
        exact, records, told = training(0, 1, kind)
        assert told == len(records) == 12
        for rank, of_rank in enumerate(results):
            ours, our_records, our_told = of_rank[kind]
            for a, b in zip(ours, exact, strict=True):
                assert float((a - b).norm() / b.norm()) < 1e-12
            assert our_told == (told if rank == 0 else 0)  # the first process's observers are told
            assert len(our_records) == len(records)
            for mine, theirs in zip(map(exactly, our_records), map(exactly, records), strict=True):
                assert mine.keys() == theirs.keys()
                for name, value in theirs.items():
                    assert mine[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-11))


def evaluating(rank: int, size: int) -> Any:
    model = net()
    found = []
    for samples in (SAMPLES, 2, 1):
        metrics = {"a": wb.Accuracy(3), "top": wb.Accuracy(3, topk=(1, 2))}
        found.append(wb.evaluate(model, data(samples), loss=nn.CrossEntropyLoss(), metrics=metrics, batch_size=7))
        found.append(wb.evaluate(model, data(samples), batch_size=7))
    x, y = data()
    y[15] = 99 if rank == 1 else 0  # in one process's copy of the data
    try:
        wb.evaluate(model, (x, y), loss=nn.CrossEntropyLoss(), batch_size=29)
    except wb.InputError as error:
        return found, type(error).__name__
    return found, "nothing"


def test_evaluation_counts_every_sample_once_and_errors_travel(world: Any) -> None:
    (first, error), (second, their_error), (third, _) = world(3, evaluating)
    exact, _ = evaluating(0, 1)
    for ours in (first, second, third):
        for mine, theirs in zip(ours, exact, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-13)
    assert (error, their_error) == ("PeerError", "LossError")


def collectives(rank: int, size: int) -> Any:
    """How many collectives an evaluation takes, the first time and later."""
    from torch import distributed

    calls = []
    kept = distributed.all_reduce
    distributed.all_reduce = lambda *args, **kwargs: (calls.append(1), kept(*args, **kwargs))[1]
    try:
        counts: list[int] = []
        chosen: list[int] = []
        metrics = {f"m{i}": wb.Accuracy(3) for i in range(4)}
        for _ in range(2):
            calls.clear()
            wb.evaluate(net(), data(), loss=nn.CrossEntropyLoss(), metrics=metrics, batch_size=8)
            counts.append(len(calls))
        for samples in (29, 1):  # accuracy is chosen; then one process sees no sample
            calls.clear()
            wb.evaluate(net(), data(samples), loss=nn.CrossEntropyLoss(), batch_size=29)
            chosen.append(len(calls))
        many = wb.Accumulator(1000)  # more than fit at first
        for _ in range(2):
            calls.clear()
            many.all_reduce()
            counts.append(len(calls))
        counts += chosen
    finally:
        distributed.all_reduce = kept
    return counts


def test_an_evaluation_takes_two_collectives(world: Any) -> None:
    assert world(2, collectives) == [[2, 2, 3, 2, 2, 2]] * 2


def disagreeing(rank: int, size: int) -> Any:
    """After evaluations that agree, one process brings other metrics, and brings the right ones again."""
    found = []
    three = {"a": wb.Accuracy(3)}
    others: list[Any] = [
        {"a": wb.Accuracy(4)},  # as many sums, of another length
        {"a": wb.Accuracy(3, ignore_index=1)},  # the same lengths
        {"a": wb.Accuracy(3), "b": wb.Accuracy(3)},
        {f"m{i}": wb.Accuracy(3) for i in range(40)},
        {},
    ]
    others.append(None)  # it chooses, and the others do not
    for other in others:
        begun = time.monotonic()
        try:
            wb.evaluate(net(), data(), loss=nn.CrossEntropyLoss(), metrics=other if rank == 1 else three)
            found.append("nothing")
        except wb.InputError as error:
            found.append(str(error))
        assert time.monotonic() - begun < 20
        found.append(wb.evaluate(net(), data(), loss=nn.CrossEntropyLoss(), metrics=three)["a"])
    try:  # none, and one that is chosen
        wb.evaluate(net(), data(), loss=nn.CrossEntropyLoss(), metrics=None if rank == 1 else {})
    except wb.InputError as error:
        found.append(str(error))
    mine = wb.Accumulator(3 + rank)
    mine.add(*[1.0] * (3 + rank))
    try:
        mine.all_reduce()
    except wb.InputError as error:
        found.append(str(error))
    return found


def test_processes_that_change_their_metrics_differently_are_told(world: Any) -> None:
    accuracy = wb.evaluate(net(), data(), metrics={"a": wb.Accuracy(3)})["a"]
    ranks = world(3, disagreeing)
    for found in ranks:
        assert found == ranks[0]
        assert found[1:12:2] == [accuracy] * 6
        assert all("the processes have different sums: process 0 has" in found[n] for n in (0, 2, 4, 6, 8, 10, 12, 13))
        assert "process 1 has" in found[0]


def many_sums(rank: int, size: int) -> Any:
    """More sums than the first buffer has places for, and then fewer again."""
    found = []
    for number in (3, 257, 700, 700, 1500, 2):
        accumulator = wb.Accumulator(number)
        accumulator.add(*[rank + 0.25 * i for i in range(number)])
        found.append(list(accumulator.all_reduce()))
    return found


def test_any_number_of_sums(world: Any) -> None:
    for found in world(3, many_sums):
        for sums in found:
            assert sums == [3 + 0.75 * i for i in range(len(sums))]


def refusing(rank: int, size: int) -> list[str]:
    messages = []
    sampler = DistributedSampler(Samples(), num_replicas=size, rank=rank)
    try:
        wb.train(
            net(),
            DataLoader(Samples(), batch_size=4, sampler=sampler),
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD,
            display=False,
        )
    except wb.InputError as error:
        messages.append(str(error))
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wb.train(
            model, data(), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, batch_size=29, epochs=1, display=False
        )
    messages.append(str(len([one for one in caught if one.category is wb.PromiseWarning])))
    messages.append(str(model[1].running_mean.tolist()))
    try:
        training(rank, size, parallel={"data": 5})
    except wb.ConfigError as error:
        messages.append(str(error))
    return messages


def test_what_cannot_be_shared_exactly_is_said_by_one_process(world: Any) -> None:
    first, second = world(2, refusing)
    assert "DistributedSampler" in first[0]
    assert (first[1], second[1]) == ("1", "0")
    assert first[2] == second[2]  # all go on with the same running statistics
    assert "start 5 of them (wholebatch train --processes 5" in first[3]
    assert first[3] == second[3]
