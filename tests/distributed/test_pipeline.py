"""A pipeline's step is that of one process on the same samples, dropout included: the oracle is one process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pipeline_cases
import pytest
import resuming
import torch
from pipeline_cases import CASES
from torch import Tensor, nn

import wholebatch as wb

BAR = 1e-10


@cache
def exact(name: str) -> Any:
    """What one process does, in other micro-batches."""
    return pipeline_cases.train(CASES[name], micro=3)


def every_case(rank: int, size: int, names: list[str]) -> Any:
    engine_of = {name: wb.parallel.engine({"pipeline": 2, "data": size // 2, **CASES[name].parallel}) for name in names}
    found = {}
    for name in names:
        engine = engine_of[name]
        found[name] = pipeline_cases.train(CASES[name], engine, part=(engine.samples.rank, engine.samples.size))
        found[name]["cuts"] = engine.cuts
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_every_case_is_that_of_one_process(world: Any, size: int) -> None:
    names = list(CASES) if size == 2 else [name for name in CASES if CASES[name].steps == 20 or name == "windows, auto"]
    ranks = world(size, every_case, names)
    for name in names:
        one = exact(name)
        for ours in (of[name] for of in ranks):
            for key, theirs in one["weights"].items():
                assert float((ours["weights"][key] - theirs).norm()) <= BAR * max(1, float(theirs.norm())), (name, key)
            assert ours["momenta"].keys() == one["momenta"].keys(), name
            for key, theirs in one["momenta"].items():
                assert float((ours["momenta"][key] - theirs).norm()) <= BAR, (name, key)
            for mine, theirs in zip(ours["reports"], one["reports"], strict=True):
                assert mine == pytest.approx(theirs, rel=BAR), name


# runs -----------------------------------------------------------------------------------------------------


def stopping(rank: int, size: int, folder: str, at: int | None, parallel: Any, micro: Any) -> Any:
    """Train until SIGTERM, which one rank gets after step ``at``; return what came of it."""
    made = resuming.model()
    actions = {at: resuming.send(signal.SIGTERM)} if at is not None and rank == size - 1 else {}
    options = {"parallel": parallel, "micro_batch": micro, "checkpoint_every": "10 min"}
    try:
        observers = [resuming.At(rank, actions)]
        weights, records = resuming.train(folder, made, resume=True, observers=observers, **options)
    except SystemExit as stop:
        kept = sum(p.untyped_storage().nbytes() for p in made.parameters())
        return stop.code, kept, []
    return 0, weights, records


def test_a_run_goes_from_a_pipeline_to_one_process_and_back(world: Any, tmp_path: Path) -> None:
    undisturbed = resuming.train(None)
    whole = sum(p.numel() * p.element_size() for p in resuming.model().parameters())
    layouts: list[tuple[int, int | None, Any, Any]] = [
        (2, 5, {"pipeline": 2}, 3),
        (1, 9, None, 2),
        (4, 15, {"pipeline": 2, "data": 2, "schedule": "gpipe"}, "auto"),
        (2, None, {"pipeline": 2, "cuts": ["4"]}, 2),
    ]
    for size, at, parallel, micro in layouts:
        results = world(size, stopping, str(tmp_path / "run"), at, parallel, micro)
        if at is not None:
            assert [code for code, *_ in results] == [143] * size
            assert resuming.saved_steps(tmp_path / "run")[-1] == at
            if size > 1:  # no process keeps all of it
                assert max(kept for _, kept, _ in results) < whole
                assert sum(kept for _, kept, _ in results[:: size // 2]) < 1.1 * whole
    for _, weights, records in results:
        assert resuming.error(weights, undisturbed[0]) < 1e-12
        assert resuming.same_records(records, undisturbed[1])


# what goes wrong ------------------------------------------------------------------------------------------


class Breaks(nn.Module):
    """Fails, or gives NaN, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and (x.detach() > 1e5).any():
            raise ArithmeticError("a number too large")
        return self.linear(x)


def said_of(work: Callable[[], Any]) -> str:
    try:
        return str(work())
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def going_wrong(rank: int, size: int) -> Any:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), Breaks(), nn.Linear(6, 6), Breaks(), nn.Linear(6, 3)).double()
    engine = wb.parallel.engine({"pipeline": 2, "cuts": ["2"]}, model)
    step = wb.Step(
        model, pipeline_cases.momentum(model.parameters()), nn.CrossEntropyLoss(), micro_batch=4, engine=engine
    )
    x, y = pipeline_cases.rows_of(13, 0)
    found = {}
    report = step((x, y))
    with step.whole():
        before = [p.detach().clone() for p in model.parameters()]
    huge, nan = x.clone(), x.clone()
    huge[9], nan[9] = 1e9, float("nan")
    found["in a stage"] = said_of(lambda: step((huge, y)))
    found["in a batch"] = said_of(lambda: step((x, y) if rank else (x, y[:5])))
    found["other parts"] = said_of(lambda: step((x[: 13 - rank], y[: 13 - rank])))
    found["in the data"] = said_of(lambda: step(wb.MicroBatches(iter([(x, y), 3]) if rank else iter([(x, y)]))))
    found["a wrong label"] = said_of(lambda: step((x, y.clamp(min=9))))
    pieces = [(x[:4], y[:4]), (torch.cat([x, x], 1)[4:8], y[4:8])]
    found["two lengths"] = said_of(lambda: step(wb.MicroBatches(pieces)))
    found["NaN"] = said_of(lambda: step((nan, y)))
    step.nonfinite = "skip"
    found["skipped"] = [step((nan, y)).skipped, step((x, torch.full_like(y, -100))).skipped, step.applied, step.skipped]
    found["of no samples"] = step((x[:0], y[:0])).skipped
    with step.whole():
        found["unchanged"] = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    found["goes on"] = step((x, y)).loss < report.loss
    found["loading a part"] = said_of(
        lambda: model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    )
    return found


def test_errors_travel_and_nothing_changes(world: Any) -> None:
    first, second = world(2, going_wrong)
    for ours in (first, second):
        assert "ArithmeticError: a number too large" in ours["in a stage"]
        assert "has 5 samples" in ours["in a batch"]
        assert "gave 13, 12 samples" in ours["other parts"]
        assert "BatchError" in ours["in the data"]
        assert "cross_entropy got output" in ours["a wrong label"]
        assert "differ in more than their samples" in ours["two lengths"]
        assert ours["NaN"].startswith("NonFiniteError: the gradient of step")
        assert ours["skipped"] == [True, True, 1, 2]
        assert ours["of no samples"]
        assert ours["unchanged"]
        assert ours["goes on"]
        assert "memory location" in ours["loading a part"]
    assert first["in a stage"].startswith("ArithmeticError") != second["in a stage"].startswith("ArithmeticError")


def refusing(rank: int, size: int) -> Any:
    model = pipeline_cases.seeded(pipeline_cases.Skipping)
    x, y = pipeline_cases.tokens_of(8, 0)

    def step(parallel: Any, made: nn.Module = model, loss: Any = None, **options: Any) -> Any:
        engine = wb.parallel.engine({"pipeline": 2, **parallel}, made)
        loss = nn.CrossEntropyLoss() if loss is None else loss
        return wb.Step(made, pipeline_cases.momentum(made.parameters()), loss, engine=engine, **options)((x, y))

    branching = nn.Sequential(nn.Embedding(7, 7), nn.Flatten())
    norms = wb.convert_batchnorm(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), group=2)
    return {
        "no such module": said_of(lambda: step({"cuts": ["block.1"]})),
        "the wrong number": said_of(lambda: step({"cuts": ["blocks.1", "blocks.2"]})),
        "a module twice removed": said_of(lambda: step({"cuts": ["table"]})),
        "a schedule": said_of(lambda: step({"schedule": "1f1c"})),
        "a key": said_of(lambda: step({"cut": ["blocks.1"]})),
        "too many": said_of(lambda: wb.parallel.engine({"pipeline": 3}, model)),
        "alone": said_of(lambda: wb.parallel.engine({"data": 2, "cuts": ["blocks.1"]}, model)),
        "few parts": said_of(lambda: step({"schedule": "interleaved1f1b"}, branching)),
        "fp16": said_of(lambda: step({}, precision="fp16")),
        "norms": said_of(lambda: step({}, norms)),
        "called twice": said_of(lambda: step({"cuts": ["blocks.1"]}, loss=lambda m, b: (m(b[0]) + m(b[0])).sum(1))),
    }


def test_what_is_refused_is_refused_everywhere(world: Any) -> None:
    said = {
        "no such module": "no module 'block.1'; did you mean 'blocks.1'?",
        "the wrong number": "name 1 modules, each the first of a stage",
        "a module twice removed": "leave a stage empty",
        "a schedule": "expected one of gpipe, 1f1b",
        "a key": "did you mean 'cuts'",
        "too many": "the number of processes is 2",
        "alone": "says nothing without pipeline=",
        "few parts": "4 stages, but Sequential has 2 parts",
        "fp16": "precision='fp16' is not available with a pipeline",
        "norms": "is not available with a pipeline",
        "called twice": "the loss calls the model 2 times",
    }
    for ours in world(2, refusing):
        for name, text in said.items():
            assert text in ours[name], (name, ours[name])


def dying(rank: int, size: int, folder: str) -> None:
    """The last stage is killed in the middle of a step; the others say so and end."""
    x, y = pipeline_cases.rows_of(13, 0)
    model, step = pipeline_cases.step_of(CASES["1f1b"], wb.parallel.engine({"pipeline": 2, "data": size // 2}))
    number = 0

    def killed(*_: Any) -> None:
        nonlocal number
        number += 1
        if number == 30:
            os.kill(os.getpid(), signal.SIGKILL)

    if rank == size - 1:
        model[8].register_forward_hook(killed)
    with wb.parallel.losses_named():
        for _ in range(10_000):
            step((x, y))


def test_a_killed_stage_ends_the_others(start: Any, tmp_path: Path) -> None:
    started = start(4, dying, str(tmp_path))
    started[-1].join(60)
    assert started[-1].exitcode == -signal.SIGKILL
    begun = time.monotonic()
    for process in started[:-1]:
        process.join(30)
    assert [process.exitcode for process in started[:-1]] == [1, 1, 1]
    assert time.monotonic() - begun < 30
    for rank in range(3):
        assert "LostError: another process" in (started[0].folder / f"error-{rank}").read_text()
