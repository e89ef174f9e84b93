"""Models of which every process holds a part, in float64: the update is that of one process on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import engine_cases
import pytest
import resuming
import torch
from engine_cases import CASES, distance
from torch import Tensor, nn

import wholebatch as wb
from wholebatch import models, saved
from wholebatch.core.processes import Alone
from wholebatch.step.engine import Flat
from wholebatch.step.parts import whole
from wholebatch.step.split_state import model_state, optimizer_state

BAR = 1e-12
# by processes: the long ones where two ways are combined
STEPS = {
    2: {"dropout between, tied": 20, "vit": 4, "encoder layer": 3, "language model": 3},
    4: {"dropout between, tied": 20, "vit": 20, "encoder layer": 3, "language model": 3},
}


class Between(nn.Module):
    """Dropout between two layers that are split, and a tied weight that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(4, 10), nn.Dropout(0.5), nn.Linear(10, 4)
        self.tied = nn.Linear(4, 4)
        self.again, self.head = self.tied, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tied(self.fc2(self.drop(torch.tanh(self.fc1(x)))))
        return self.head(self.again(torch.tanh(x)))


class Encoder(nn.Module):
    """A layer of torch's own, which is not written with any of this in mind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)).mean(1)


def vit(classes: int = 3, channels: int = 1, image_size: int = 6) -> nn.Module:
    options = {"image_size": image_size, "patch": 3, "width": 8, "depth": 2, "heads": 2, "dropout": 0.3}
    return models.build("vit", seed=1, num_classes=classes, in_channels=channels, **options).double()


def language_model() -> nn.Module:
    options = {"vocabulary": 7, "length": 6, "width": 8, "depth": 1, "heads": 2, "dropout": 0.3}
    return models.build("transformer_lm", seed=1, **options).double()


ENCODER = {"layer.linear1": "colwise", "layer.linear2": "rowwise", "layer.norm*": "sequence", "head": "colwise_whole"}
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Any]] = {
    "dropout between, tied": (Between, (4,), {"fc1": "colwise", "fc2": "rowwise", "head": "colwise_whole"}),
    "encoder layer": (Encoder, (5, 8), ENCODER),
    "vit": (vit, (1, 6, 6), None),
    "language model": (language_model, (), None),
}
# processes, layout, where the parts of 12 samples end
LAYOUTS: dict[str, tuple[int, dict[str, Any], list[int]]] = {
    "shard 2": (2, {"shard": 2}, [5, 12]),
    "shard 2, all samples on one": (2, {"shard": 2}, [0, 12]),
    "shard 2, by layers": (2, {"shard": 2, "reshard": "layer"}, [3, 12]),
    "tensor 2": (2, {"tensor": 2}, [12]),
    "data 2 x shard 2": (4, {"data": 2, "shard": 2}, [3, 8, 8, 12]),
    "data 2 x tensor 2": (4, {"data": 2, "tensor": 2}, [5, 12]),
}


def batch(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    if not shape:
        tokens = torch.randint(0, 7, (12, 7))
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(12, *shape, dtype=torch.float64), torch.randint(0, 3, (12,))


def steps(
    name: str, count: int, layout: dict[str, Any] | None = None, start: int = 0, stop: int = 12
) -> tuple[list[Any], list[Tensor]]:
    """Reports of some steps with momentum and clipping, and the whole weights after them."""
    make, shape, plan = MODELS[name]
    model = engine_cases.seeded(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    if layout is None:
        engine: Any = Flat(Alone())
    else:
        engine = wb.parallel.engine({**layout, **({"plan": plan} if "tensor" in layout else {})}, model)
        wb.parallel.adopt(optimizer, engine)
    loss = nn.CrossEntropyLoss()
    step = wb.Step(model, optimizer, loss, micro_batch=3, seed=1, clip_norm=0.3, engine=engine)
    x, y = batch(shape)
    reports = [step((x[start:stop], y[start:stop])) for _ in range(count)]
    said = [(r.loss, r.grad_norm, r.weight, r.samples, r.skipped) for r in reports]
    return said, [whole(p, p).clone() for p in model.parameters()]


@cache
def exact(name: str, count: int) -> tuple[list[Any], list[Tensor]]:
    return steps(name, count)


def in_layouts(rank: int, size: int) -> Any:
    found = {}
    for named, (needed, layout, ends) in LAYOUTS.items():
        if needed != size:
            continue
        place = rank // layout.get("tensor", 1)
        for name in MODELS:
            if "," in named and name in ("encoder layer", "language model"):
                continue  # less of what the others show
            found[named, name] = steps(name, STEPS[size][name], layout, [0, *ends][place], ends[place])
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_every_layout_is_one_process(world: Any, size: int) -> None:
    for found in world(size, in_layouts):
        for key, (reports, weights) in found.items():
            wanted, end = exact(key[1], STEPS[size][key[1]])
            assert distance(weights, end) < BAR, key
            for one, other in zip(reports, wanted, strict=True):
                assert one == pytest.approx(other, abs=BAR), key


# "called twice" is none of them: it calls a part of the model by itself, for which that part would have to be whole
LAYERWISE = (
    "uneven",
    "two samples",
    "the last process alone",
    "tokens",
    "means, some over nothing",
    "weight 0",
    "dropout",
    "windows",
    "branching",
    "checkpointed",
)


def sharded_cases(rank: int, size: int) -> Any:
    """The contract of the other engines, whose models are made anew for each."""
    found = {}
    for name, case in CASES.items():
        if name == "loss with a parameter":
            continue
        for way in ("step", "layer"):
            if way == "layer" and name not in LAYERWISE:
                continue
            model = engine_cases.seeded(case.model)
            engine = wb.parallel.engine({"shard": size, "reshard": way}, model)
            optimizer = case.optimizer(model.parameters())
            step = wb.Step(model, optimizer, case.loss, micro_batch=case.micro, seed=1, engine=engine, **case.options)
            start, stop = engine_cases.part(case, rank, size)
            x, y = (tensor[start:stop] for tensor in case.data(sum(case.parts)))
            for _ in range(3):
                pieces = zip(x.split(3), y.split(3), strict=True) if len(x) else ()
                report = step(wb.MicroBatches(pieces, samples=len(x)) if case.window else (x, y))
            none = [parameter.grad is None for parameter in model.parameters()]
            weights = [whole(parameter, parameter).clone() for parameter in model.parameters()]
            found[name, way] = weights, none, (report.loss, report.weight, report.samples, report.grad_norm)
    return found


def test_sharding_keeps_the_contract(world: Any) -> None:
    for found in world(2, sharded_cases):
        for (name, way), (weights, none, report) in found.items():
            wanted = engine_cases.train(CASES[name], 0, 1, micro=1 if name.startswith("means") else 3)
            assert distance(weights, wanted["weights"]) < BAR, (name, way)
            if name != "groups":  # another order of parameters
                assert none == wanted["none"], (name, way)
            assert report == pytest.approx(wanted["reports"][-1][:4], abs=BAR, nan_ok=True), (name, way)


# runs ------------------------------------------------------------------------------------------------

PLAN = {"1": "colwise", "4": "rowwise"}
WAYS: dict[str, tuple[int, Any]] = {
    "one": (1, None),
    "data 2": (2, None),
    "shard 2": (2, {"shard": 2}),
    "shard 2, by layers": (2, {"shard": 2, "reshard": "layer"}),
    "tensor 2": (2, {"tensor": 2}),
    "data 2 x shard 2": (4, {"data": 2, "shard": 2}),
    "data 2 x tensor 2": (4, {"data": 2, "tensor": 2}),
}


def leg(rank: int, size: int, folder: str, layout: Any, epochs: int, kind: str) -> Any:
    """Train up to ``epochs`` epochs, going on where the run stands; return the weights saved at the end."""
    made = vit() if kind == "vit" else resuming.model()
    if layout and "tensor" in layout and kind != "vit":
        layout = {**layout, "plan": PLAN}
    given = {} if layout is None else {"parallel": layout}
    _, records = resuming.train(folder, made, epochs=epochs, resume=True, **given)
    measured = wb.evaluate(made, resuming.dataset(), batch_size=7)
    return (saved.newest(Path(folder)) if rank == 0 else None), records, measured


@pytest.mark.parametrize(
    ("kind", "ways"),
    [
        ("mlp", ["shard 2", "one", "data 2 x shard 2", "tensor 2"]),
        ("vit", ["tensor 2", "shard 2", "data 2 x tensor 2", "one"]),
        ("mlp", ["one", "shard 2, by layers", "data 2", "data 2 x tensor 2"]),
    ],
)
def test_a_run_goes_on_in_every_layout(world: Any, tmp_path: Path, kind: str, ways: list[str]) -> None:
    straight, records, measured = world(1, leg, str(tmp_path / "straight"), None, len(ways), kind)[0]
    for epochs, way in enumerate(ways, 1):
        size, layout = WAYS[way]
        found = world(size, leg, str(tmp_path / "run"), layout, epochs, kind)
        assert all(result[2] == found[0][2] for result in found)
    state, history, last = found[0]
    assert list(state) == list(straight)
    assert all(type(value) is Tensor and value.shape == straight[name].shape for name, value in state.items())
    assert max(float((state[name] - straight[name]).abs().max()) for name in state) < 1e-10
    assert last == pytest.approx(measured, abs=1e-10)
    assert [record["step"] for record in history] == [record["step"] for record in records]
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in records], abs=1e-10)


def of_whom(rank: int, size: int) -> Any:
    model = engine_cases.seeded(Between)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = wb.parallel.engine({"shard": size}, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    kept = model_state(model, in_parts=False)
    assert {name: value.shape for name, value in kept.items()} == {name: value.shape for name, value in before.items()}
    same = rank == 0 and all(torch.equal(kept[name], before[name]) for name in before)
    wb.Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=2, engine=engine)(batch((4,)))
    momenta = [entry["momentum_buffer"] for entry in optimizer_state(optimizer, in_parts=False)["state"].values()]
    return same, {value.device.type for value in kept.values()}, {value.device.type for value in momenta}


def test_only_the_first_process_holds_the_whole(world: Any) -> None:
    assert world(2, of_whom) == [(True, {"cpu"}, {"cpu"}), (False, {"meta"}, {"meta"})]


# what goes wrong -------------------------------------------------------------------------------------


class Failing(nn.Module):
    """Fails in its second layer where the first input is 99."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.fc1(x))
        if x[0, 0] == 99:
            raise OSError("the model broke")
        return self.fc2(y)


def broken(x: Tensor, y: Tensor) -> Any:
    yield x[:2], y[:2]
    raise OSError("the disk broke")


def failing(rank: int, size: int) -> Any:
    found = {}
    for named, layout in [
        ("step", {"shard": 2}),
        ("layer", {"shard": 2, "reshard": "layer"}),
        ("tensor", {"tensor": 2, "plan": {"fc1": "colwise", "fc2": "rowwise"}}),
    ]:
        model = engine_cases.seeded(Failing)
        engine = wb.parallel.engine(layout, model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = wb.Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=2, engine=engine)
        x, y = batch((4,))
        said = []
        for wrong in ("disk", "nan", "model"):
            bad = x.clone()
            bad[0, 0] = {"nan": float("nan"), "model": 99.0}.get(wrong, 1.0)
            if wrong == "model" and named != "step":
                continue  # there the others wait within the model, for this process's end
            mine = rank == 1 or (wrong == "nan" and named == "tensor")
            try:
                if wrong == "disk":
                    step(wb.MicroBatches(broken(x, y) if mine else [(x, y)], samples=12), position=0)
                else:
                    step((bad if mine else x, y))
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}"[:60])
        report = step((x, y))
        found[named] = said, report.loss, report.grad_norm
    return found


def test_errors_travel(world: Any) -> None:
    model = engine_cases.seeded(Failing)
    x, y = batch((4,))
    model_loss = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())((x, y))
    first, second = world(2, failing)
    for named in first:
        for said, other in zip(first[named][0], second[named][0], strict=True):
            kind, _, text = other.partition(": ")
            assert said.startswith(f"PeerError: process 1 failed: {kind}: {text}"[:60]) or said[:30] == other[:30]
        assert len(first[named][0]) == (3 if named == "step" else 2)
        for result in (first, second):  # and the next step is right: the weights are as before
            assert result[named][1:] == pytest.approx((model_loss.loss, model_loss.grad_norm), abs=BAR)


def coupled(rank: int, size: int) -> Any:
    model = engine_cases.seeded(engine_cases.dropping)
    engine = wb.parallel.engine({"shard": size}, model) if size > 1 else Flat(Alone())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(z: Tensor) -> Tensor:
        return (z @ z.T).logsumexp(1).mean()

    whole_batch = wb.WholeBatchLoss(lambda model, batch: model(batch[0]), loss)
    step = wb.Step(model, optimizer, whole_batch, micro_batch=2, seed=1, engine=engine)
    x, _ = engine_cases.data(7)
    x = x[:5] if rank == 0 and size > 1 else x[5:] if size > 1 else x
    reports = [step((x,)) for _ in range(2)]
    return [(r.loss, r.grad_norm) for r in reports]


def test_a_loss_of_the_whole_batch(world: Any) -> None:
    wanted = coupled(0, 1)
    for found in world(2, coupled):
        assert [list(one) for one in found] == [pytest.approx(list(one), rel=1e-12) for one in wanted]
