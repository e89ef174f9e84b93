"""One contract for both engines, in float64: the update of several processes is that of one on the same samples."""

from __future__ import annotations

import copy
import gc
import math
import time
import warnings
import weakref
from functools import cache
from typing import Any

import engine_cases
import pytest
import torch
import torch.nn.functional as F
from engine_cases import CASES, ENGINES, Case, Checkpointed, distance, engine, momentum, plain, seeded
from torch import Tensor, nn

import wholebatch as wb

BAR = 1e-12
SECONDS = 20.0  # far more than any of these takes on a busy machine, and less than any time-out


@cache
def exact(name: str) -> tuple[Any, list[Tensor]]:
    """What one process does, in other micro-batches, and the weights it began with."""
    case = CASES[name]
    whole = engine_cases.train(case, 0, 1, micro=1 if name.startswith("means") else 3)
    return whole, engine_cases.train(case, 0, 1, steps=0)["weights"]


def every_case(rank: int, size: int) -> Any:
    return {
        (kind, name): engine_cases.train(case, rank, size, engine(kind))
        for kind in ENGINES
        for name, case in CASES.items()
    }


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_case_is_that_of_one_process(world: Any, size: int) -> None:
    ranks = world(size, every_case)
    for (kind, name), first in ranks[0].items():
        one, before = exact(name)
        moved = distance(one["weights"], before)
        assert (moved > 0) == (name != "weight 0"), name
        for ours in (of[kind, name] for of in ranks):
            assert distance(ours["weights"], one["weights"]) <= BAR * moved, (kind, name)
            size_of_gradient = distance(one["gradients"], [0 * g for g in one["gradients"]])
            assert distance(ours["gradients"], one["gradients"]) <= BAR * size_of_gradient, (kind, name)
            assert ours["none"] == one["none"], (kind, name)
            assert ours["names"] == one["names"], (kind, name)
            for mine, theirs in zip(ours["reports"], one["reports"], strict=True):
                assert mine[:4] == pytest.approx(theirs[:4], rel=BAR, nan_ok=True), (kind, name)
                assert mine[4] is theirs[4] is (name == "weight 0"), (kind, name)
            assert all(torch.equal(a, b) for a, b in zip(ours["weights"], first["weights"], strict=True)), (kind, name)
    for of in ranks:  # buffers are each process's own, and the same whatever the engine
        for name in CASES:
            for kind in ENGINES:
                assert [b.tolist() for b in of[kind, name]["buffers"]] == [
                    b.tolist() for b in of["flat", name]["buffers"]
                ], (kind, name)


def test_the_cases_tell_something() -> None:
    """An unused parameter that had a gradient of zeros would decay; dropout happens; the branch is not always taken."""
    one, before = exact("branching")
    names = [name for name, _ in engine_cases.Branching().named_parameters()]
    still = {name for name, a, b in zip(names, one["weights"], before, strict=True) if torch.equal(a, b)}
    assert still == {"unused.weight", "unused.bias", "frozen.weight", "frozen.bias"}
    x, _ = engine_cases.data(16)
    assert 0 < int((x[:, 0] > 9).sum()) < 4
    dropped, dropped_micro = exact("dropout")[0]["reports"], exact("windows")[0]["reports"]
    assert dropped == dropped_micro
    assert dropped[0][0] != engine_cases.train(Case((5, 2, 0, 8)), 0, 1)["reports"][0][0]


# own loops ----------------------------------------------------------------------------------------------


def accumulate(rank: int, size: int) -> Any:
    """A window that is forgotten, then two that count; the first process adds nothing to the second."""
    results = {}
    for kind in ENGINES:
        model = seeded(engine_cases.Branching)
        optimizer = momentum(model.parameters())
        g = wb.GradientAccumulator(model, engine=engine(kind))
        x, _ = engine_cases.data(15)
        forgotten = x.abs() + 10  # takes the branch
        for takes_part in (True, False):  # once applied with a rate of 0, once forgotten
            g.add((model(forgotten) - 1) ** 2)
            if takes_part:
                g.apply(torch.optim.SGD(model.parameters(), lr=0.0))
                assert model.rare.weight.grad is not None
        g.reset()
        calm = x.clamp(max=8)
        for window in range(2):
            if window == 0 or rank > 0:
                for piece in calm[rank::size].split(2):
                    g.add((model(piece) - 1) ** 2)
            report = g.apply(optimizer)
            g_weight = report.weight
            if rank == 0:  # a backward of one's own between two windows concerns nobody
                (model(forgotten) ** 2).sum().backward()
        results[kind] = [p.detach().clone() for p in model.parameters()], g_weight, model.rare.weight.grad is None
    return results


def test_gradient_accumulators(world: Any) -> None:
    first, second = world(2, accumulate)
    model = seeded(engine_cases.Branching)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = momentum(model.parameters())
    x = engine_cases.data(15)[0].clamp(max=8)
    for samples in (x, x[1::2]):
        optimizer.zero_grad()
        ((model(samples) - 1) ** 2).mean().backward()
        optimizer.step()
    theirs = [p.detach() for p in model.parameters()]
    for kind in ENGINES:
        for ours, weight, _ in (first[kind], second[kind]):
            assert distance(ours, theirs) < BAR * distance(theirs, before), kind
            assert weight == 7 * 3
        assert second[kind][2], kind  # nobody has a gradient for the branch


def changing(rank: int, size: int) -> Any:
    """Layers are frozen, thawed, and turned to another dtype between steps; a copy of the step goes on as well."""
    results = {}
    x, y = engine_cases.data(11)
    mine = slice(0, 8) if rank == 0 else slice(8, 11)
    for kind in ENGINES:
        model = seeded(plain)
        step = wb.Step(model, momentum(model.parameters()), nn.CrossEntropyLoss(), micro_batch=3, engine=engine(kind))
        for thawed in (True, False, True):
            model[0].requires_grad_(thawed)
            report = step((x[mine], y[mine]))
        twin = copy.deepcopy(step)
        step((x[mine], y[mine]))
        twin((x[mine], y[mine]))
        same = all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.model.parameters(), strict=True))
        model.float()
        step.optimizer.state.clear()
        report = step((x[mine].float(), y[mine]))
        results[kind] = [p.detach().double() for p in model.parameters()], same, report.weight
    return results


def test_what_is_trained_may_change(world: Any) -> None:
    ranks = world(2, changing)
    (first, _), flat = ranks[0]["flat"][:2], ranks[0]["flat"][0]
    del first
    for of in ranks:
        for kind in ENGINES:
            ours, same, _ = of[kind]
            assert same, kind
            assert distance(ours, flat) < 1e-6 * distance(flat, [0 * p for p in flat]), kind


# errors -------------------------------------------------------------------------------------------------


class Breaks(torch.autograd.Function):
    """Goes through, and fails in backward."""

    @staticmethod
    def forward(context: Any, x: Tensor, broken: bool) -> Tensor:
        context.broken = broken
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        if context.broken:
            raise ValueError("broken in backward")
        return gradient, None


class Fragile(nn.Module):
    """Four layers; what is larger than a million breaks at ``place``, in forward (f) or backward (b)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)])
        self.place = ""

    def forward(self, x: Tensor) -> Tensor:
        broken = bool(x.abs().max() > 1e6)
        for number, layer in enumerate(self.layers):
            x = torch.tanh(layer(x))
            if broken and self.place == f"f{number}":
                raise ValueError("broken in forward")
            x = Breaks.apply(x, broken and self.place == f"b{number}")
        return x


PLACES = ["f0", "f3", "b0", "b1", "b2", "b3"]
FAILURES = [(place, at) for place in PLACES for at in (0, 2, 4)] + [
    ("lengths", 0),
    ("labels", 4),
    ("dtype", 0),
    ("loader", 2),
]


def failing(rank: int, size: int) -> Any:
    """In every engine, each failure in the second process; then a step that works."""
    found: dict[Any, Any] = {}
    x, y = engine_cases.data(5)
    for kind in ENGINES:
        model = seeded(Fragile)
        step = wb.Step(model, momentum(model.parameters()), nn.CrossEntropyLoss(), micro_batch=1, engine=engine(kind))
        for place, at in FAILURES:
            model.place = place
            before = [p.clone() for p in model.parameters()]
            begun = time.monotonic()
            try:
                step(broken(x, y, place, at) if rank == 1 else (x, y), position=rank * 5 if at else None)
                message = "nothing"
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
            model.place = ""
            loss = step((x, y)).loss
            found[kind, place, at] = message, time.monotonic() - begun, loss
    return found


def broken(x: Tensor, y: Tensor, place: str, at: int) -> Any:
    """A batch whose sample ``at`` breaks the model, or one that is wrong in itself."""
    if place == "lengths":
        return x, y[:4]
    if place == "labels":
        y = y.clone()
        y[at] = 77
        return x, y
    if place == "dtype":
        return x.float(), y
    if place == "loader":
        return wb.MicroBatches(breaking_loader(x, y, at), samples=5)
    x = x.clone()
    x[at] = 1e9
    return x, y


def breaking_loader(x: Tensor, y: Tensor, at: int) -> Any:
    for row in range(at):
        yield x[row : row + 1], y[row : row + 1]
    raise OSError("the disk is gone")


@pytest.mark.parametrize("size", [2, 3])
def test_an_error_in_one_process_is_raised_in_all(world: Any, size: int) -> None:
    ranks = world(size, failing)
    for key in ranks[0]:
        _, place, _ = key
        messages = [of[key][0] for of in ranks]
        assert max(of[key][1] for of in ranks) < SECONDS, key
        own = {"f": "broken in forward", "b": "broken in backward"}.get(place[0], "")
        own = {"lengths": "BatchError", "labels": "LossError", "dtype": "RuntimeError", "loader": "disk"}.get(
            place, own
        )
        assert own in messages[1], key
        assert not messages[1].startswith("PeerError"), key
        for message in messages[:1] + messages[2:]:
            assert message.startswith("PeerError: process 1 failed: "), key
            assert own in message, key
        losses = [of[key][2] for of in ranks]
        assert len(set(losses)) == 1
        assert losses[0] == pytest.approx(ranks[0]["flat", *key[1:]][2], rel=BAR), key  # the next step is right


def not_finite(rank: int, size: int) -> Any:
    x, y = engine_cases.data(6)
    poisoned = x.clone()
    poisoned[3, 1] = math.nan
    found = {}
    for kind in ENGINES:
        model = seeded(plain)
        options: dict[str, Any] = {"micro_batch": 2, "engine": engine(kind)}
        step = wb.Step(model, momentum(model.parameters()), nn.CrossEntropyLoss(), **options)
        before = [p.clone() for p in model.parameters()]
        message = "nothing"
        try:
            step((poisoned if rank == 1 else x, y))
        except wb.NonFiniteError as error:
            message = str(error)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        step((x, y))
        options["engine"] = engine(kind)
        skipping = wb.Step(model, momentum(model.parameters()), nn.CrossEntropyLoss(), nonfinite="skip", **options)
        skipped = [skipping((poisoned if rank == 1 and number == 1 else x, y)).skipped for number in range(3)]
        found[kind] = message, skipped, [p.detach().clone() for p in model.parameters()]
    return found


def test_nan_in_one_process_concerns_all(world: Any) -> None:
    ranks = world(3, not_finite)
    for kind in ENGINES:
        for of in ranks:
            message, skipped, weights = of[kind]
            assert "not finite" in message, kind
            assert skipped == [False, True, False], kind
            assert distance(weights, ranks[0]["flat"][2]) < BAR, kind


# what DistributedDataParallel was seen to do wrong ---------------------------------------------------------


def kinds_of_numbers(rank: int, size: int) -> Any:
    x, y = engine_cases.data(12)
    x = x / x.abs().max()
    mine = slice(0, 7) if rank == 0 else slice(7, 12)
    if size == 1:
        mine = slice(0, 12)
    found = {}
    for kind in ENGINES if size > 1 else ["flat"]:
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            model = seeded(plain).to(dtype)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            step = wb.Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=3, engine=engine(kind))
            step((x[mine].to(dtype), y[mine]))
            found[kind, str(dtype)] = [p.grad.double() for p in model.parameters() if p.grad is not None]
    return found


def test_gradients_of_every_float_are_summed(world: Any) -> None:
    one = kinds_of_numbers(0, 1)
    bars = {"torch.float16": 1e-2, "torch.bfloat16": 5e-2, "torch.float32": 1e-6, "torch.float64": 1e-14}
    for of in world(2, kinds_of_numbers):
        for (kind, dtype), ours in of.items():
            theirs = one["flat", dtype]
            assert len(ours) == 4
            assert distance(ours, theirs) < bars[dtype] * distance(theirs, [0 * t for t in theirs]), (kind, dtype)


def refusing(rank: int, size: int) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    x, y = engine_cases.data(6)
    messages: dict[str, str] = {}

    def trying(name: str, model: nn.Module, loss: Any, x: Tensor = x, seconds: float = SECONDS) -> None:
        begun = time.monotonic()
        try:
            made = wb.Step(model, momentum(model.parameters()), loss, engine=engine("ddp"))
            made((x, y))
            messages[name] = "nothing"
        except Exception as error:
            messages[name] = f"{type(error).__name__}: {error}"
        assert time.monotonic() - begun < seconds

    trying("wrapped", DistributedDataParallel(seeded(plain)), nn.CrossEntropyLoss())
    numbers = (x.abs() * 7).long() % 50
    trying("sparse", nn.EmbeddingBag(50, 3, sparse=True, mode="sum").double(), nn.CrossEntropyLoss(), numbers)
    table = nn.Embedding(50, 3).double()

    def looks_up(model: nn.Module, batch: Any) -> Tensor:
        return F.embedding(batch[0], model.weight, sparse=True) ** 2

    trying("sparse by hand", table, looks_up, numbers)
    if rank == 1:
        table = nn.Embedding(50, 3).double()  # a process of its own kind
    trying("sparse in one", table, looks_up if rank == 1 else lambda m, b: m(b[0]) ** 2, numbers)
    trying("reentrant", seeded(lambda: Checkpointed(reentrant=True)), nn.CrossEntropyLoss())
    synchronous = nn.Sequential(nn.Linear(4, 6), nn.SyncBatchNorm(6), nn.Linear(6, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wb.PromiseWarning)
        trying("synchronous", synchronous, nn.CrossEntropyLoss())
    model = seeded(engine_cases.Branching)
    step = wb.Step(model, momentum(model.parameters()), nn.CrossEntropyLoss(), engine=engine("ddp"))
    step((x / 100, y))
    (model(x.abs() + 10) ** 2).sum().backward()
    try:
        step((x / 100, y))
    except wb.InputError as error:
        messages["outside"] = str(error)
    return messages


def test_what_cannot_be_served_is_said_by_every_process(world: Any) -> None:
    for of in world(2, refusing):
        assert "pass the bare model (model.module)" in of["wrapped"]
        assert "the model gives sparse gradients" in of["sparse"]
        assert "use parallel='flat'" in of["sparse"]
        assert "sparse" in of["sparse by hand"]
        assert "sparse" in of["sparse in one"]
        assert "use_reentrant=False" in of["reentrant"]
        assert "GPU" in of["synchronous"]
        assert "a backward outside of this step" in of["outside"]


def leaving(rank: int, size: int) -> Any:
    """The user's model stays what it was; the wrapper goes with the step; nothing is static or averaged."""
    model = seeded(plain)
    attributes = {name: list(vars(module)) for name, module in model.named_modules()}
    made = engine("ddp")
    step = wb.Step(model, momentum(model.parameters()), nn.CrossEntropyLoss(), micro_batch=2, engine=made)
    x, y = engine_cases.data(6)
    step((x, y))
    wrapper: Any = weakref.ref(made._wrapper)
    assert wrapper().static_graph is False
    assert wrapper().find_unused_parameters is True
    assert attributes == {name: list(vars(module)) for name, module in model.named_modules()}
    assert all(parameter.grad is not None for parameter in model.parameters())
    branching = seeded(engine_cases.Branching)
    other = wb.Step(branching, momentum(branching.parameters()), nn.CrossEntropyLoss(), engine=engine("ddp"))
    taken = [other((inputs, y)) and branching.rare.weight.grad is not None for inputs in (x.abs() + 10, x / 100)]
    assert taken == [True, False]  # a gradient of the window before is no gradient of this one
    del step, made
    gc.collect()
    (model(x) ** 2).sum().backward()  # in both processes, with nobody who sums
    return wrapper() is None, type(model).__name__


def test_the_model_stays_the_users(world: Any) -> None:
    assert world(2, leaving) == [(True, "Sequential")] * 2
