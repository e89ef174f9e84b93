"""No ``add`` reads the host, folds included: dispatched reads are counted, and the meta device has nothing to read."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from wholebatch import Accumulator, Accuracy, Mean

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select", "bincount")


class CountReads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        self.calls.append(name)
        if name in READS or (name == "_to_copy" and (kwargs or {}).get("device") == torch.device("cpu")):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


def add_much(metrics: tuple[Accumulator, Mean, Accuracy, Accuracy, Accuracy], device: str) -> None:
    acc, mean, accuracy, ranked, wide = metrics
    losses = torch.rand(256, device=device)
    logits = torch.randn(256, 10, device=device)
    many = torch.randn(4, 4097, device=device)
    targets = torch.zeros(256, dtype=torch.int64, device=device)
    mask = torch.ones(256, dtype=torch.bool, device=device)
    for _ in range(70):
        acc.add(losses.sum(), targets, 256)
        mean.add(losses.mean())
        mean.add(losses)
        mean.add(losses, 2.0)
        mean.add(losses, weight=losses)
        mean.add(losses, mask=mask)
        accuracy.add(logits, targets)
        ranked.add(logits, targets)
    for _ in range(140):
        accuracy.add(logits, targets, mask)
        accuracy.add(targets, targets)
        wide.add(many, targets[:4])


def metrics() -> tuple[Accumulator, Mean, Accuracy, Accuracy, Accuracy]:
    return Accumulator(3), Mean(), Accuracy(10, ignore_index=-1), Accuracy(10, topk=(1, 3)), Accuracy(4097)


def test_add_reads_nothing_and_the_counter_would_see_it() -> None:
    objects = metrics()
    with CountReads() as mode:
        add_much(objects, "cpu")
        for one in objects:
            one.merge(one)
    assert mode.reads == []
    assert mode.calls.count("scatter_add_") > 10, "the folds of Accuracy happened inside"
    assert mode.calls.count("sum") > 140, "the folds of the sums, too"
    with CountReads() as mode:
        assert objects[0][2] == 2 * 70 * 256
        assert objects[0][1] == 0
    assert mode.reads == ["_local_scalar_dense"]


def test_state_lives_where_the_values_are() -> None:
    objects = metrics()
    add_much(objects, "meta")  # a tensor without data: any read raises
    with pytest.raises((RuntimeError, NotImplementedError)):
        objects[0][0]
    assert objects[0]._totals[0].device == torch.device("meta")
    assert objects[2]._counts is not None
    assert objects[2]._counts.device == torch.device("meta")


def test_values_of_a_second_device_go_to_the_first() -> None:
    acc, accuracy = Accumulator(1), Accuracy(2)
    acc.add(torch.ones((), device="meta"))
    acc.add(torch.ones(()))
    accuracy.add(torch.ones(1, 2, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    accuracy.add(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    accuracy.add(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    assert acc._totals[0].device == torch.device("meta")
    assert accuracy._fold().device == torch.device("meta")  # type: ignore[union-attr]


def test_a_loaded_state_follows_the_next_value() -> None:
    acc, accuracy = Accumulator(1), Accuracy(2)
    acc.add(torch.ones(()))
    accuracy.add(torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    acc.load_state_dict(acc.state_dict())
    accuracy.load_state_dict(accuracy.state_dict())
    acc.add(torch.ones((), device="meta"))
    accuracy.add(torch.ones(1, 2, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta"))
    assert acc._totals[0].device == torch.device("meta")
    assert accuracy._fold().device == torch.device("meta")  # type: ignore[union-attr]


@pytest.mark.parametrize("first_inside", [True, False])
def test_state_serves_in_and_out_of_inference_mode(first_inside: bool) -> None:
    acc, mean, accuracy = Accumulator(2), Mean(), Accuracy(3)
    for inside in (first_inside, not first_inside, first_inside):
        with torch.inference_mode(inside):
            logits, targets = torch.eye(3), torch.arange(3)
            for _ in range(50):
                acc.add(logits.sum(), targets)
                mean.add(logits, mask=logits > 0)
                accuracy.add(logits, targets)
    assert (acc[0], acc[1], mean.value, accuracy.value, accuracy.count) == (450.0, 450, 1.0, 1.0, 450)
    with torch.inference_mode():
        inner = acc + acc
        again = accuracy + accuracy
    inner.add(torch.ones(()), 1)
    again.add(torch.eye(3), torch.arange(3))
    assert (inner[0], again.count) == (901.0, 903)


def test_gradients_are_left_behind() -> None:
    acc, mean, accuracy = Accumulator(1), Mean(), Accuracy(3)
    weight = torch.ones(3, 3, requires_grad=True)
    for _ in range(50):
        acc.add((weight * 2).sum())
        mean.add((weight * 2).mean())
        mean.add(weight * 2, weight=weight)
        accuracy.add(weight * 2, torch.arange(3))
    acc.add(torch.nn.Parameter(torch.ones(2)))
    assert not acc._totals[0]._sums[torch.float64].fold().requires_grad
    assert acc[0] == 902.0
    assert (mean.value, mean.weight, accuracy.count) == (2.0, 500, 150)


def test_autocast_does_not_narrow() -> None:
    acc, mean = Accumulator(1), Mean()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(70):
            acc.add(torch.tensor([1.0, 2.0**-20]))
            mean.add(torch.tensor([1.0, 1.0 + 2.0**-20]), weight=torch.tensor([1.0, 1.0]))
    assert acc[0] == 70 * (1 + 2.0**-20)
    assert mean.value == 1 + 2.0**-21
