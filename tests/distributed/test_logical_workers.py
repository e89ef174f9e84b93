"""What logical workers do is a function of their number: on 1 to 4 processes, and when a run goes on elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import resuming
import torch
from resuming import STEPS, error, interrupted, same_records, saved_steps
from torch import nn

import wholebatch as wb
from wholebatch.display import read_history

K = 5  # no multiple of any number of processes but 1
ENGINES: dict[str, dict[str, Any]] = {
    "plain": {"workers": K},
    "bf16": {"workers": K, "compress": "bf16"},
    "fp16": {"workers": K, "compress": "fp16"},
    "powersgd": {"workers": K, "compress": {"powersgd": 2}},
    "stale": {"workers": K, "stale": 2},
}
LOCAL: dict[str, dict[str, Any]] = {
    "mean": {"workers": K, "local_steps": 3},
    "post-local": {"workers": K, "local_steps": 2, "start": 5},
    "diloco": {"workers": K, "local_steps": 3, "outer": "diloco"},
    "late": {"workers": K, "local_steps": 3, "overlap": True},
}
MODES = {**ENGINES, **LOCAL}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def every_mode(rank: int, size: int) -> Any:
    """Batches of 7 samples, the last of an epoch of 3: some workers have one sample, some two, some none."""
    return {name: resuming.train(None, parallel=parallel, epochs=2, log_every=3) for name, parallel in MODES.items()}


def test_the_result_is_the_same_on_any_number_of_processes(world: Any) -> None:
    alone = every_mode(0, 1)
    plain, plain_records = resuming.train(None, epochs=2, log_every=3)
    assert error(alone["plain"][0], plain) < 1e-13
    for name, (weights, records) in alone.items():
        assert (error(weights, plain) > 1e-7) == (name != "plain"), name  # it does something
        assert all(record["parallel"].startswith("5 workers") for record in records)
    assert not any("parallel" in record for record in plain_records)
    for size in (2, 4):
        for of_rank in world(size, every_mode):
            for name, (weights, records) in of_rank.items():
                assert same_records(records, alone[name][1]), (name, size)
                if name in ENGINES:  # added in the workers' order
                    assert all(torch.equal(a, b) for a, b in zip(weights, alone[name][0], strict=True)), (name, size)
                assert error(weights, alone[name][0]) < 1e-13, (name, size)


RESUMED = {name: MODES[name] for name in ("powersgd", "stale", "post-local", "diloco", "late")}


def chain(rank: int, size: int, folder: str, at: int | None) -> Any:
    return {
        name: interrupted(rank, size, f"{folder}/{name}", at, {"parallel": parallel, "checkpoint_every": "10 min"})
        for name, parallel in RESUMED.items()
    }


def test_a_run_goes_on_with_another_number_of_processes(world: Any, tmp_path: Path) -> None:
    """Stopped within and between rounds; the state of every worker moves to wherever the worker is."""
    undisturbed = {name: resuming.train(None, parallel=parallel) for name, parallel in RESUMED.items()}
    for size, at in [(2, 5), (1, 9), (3, 14)]:
        for of_rank in world(size, chain, str(tmp_path), at):
            assert {code for code, *_ in of_rank.values()} == {143}
    assert saved_steps(tmp_path / "stale")[-1] == 14
    assert saved_steps(tmp_path / "diloco")[-1] == 15  # when the processes met next
    for of_rank in world(2, chain, str(tmp_path), None):
        for name, (code, weights, records) in of_rank.items():
            assert code == 0, name
            assert error(weights, undisturbed[name][0]) < 1e-12, name
            assert same_records(records, undisturbed[name][1]), name
    records = read_history(tmp_path / "diloco").records
    assert {record["parallel"] for record in records} == {
        "5 workers, 3 local steps, DiLoCo with lr 0.7 and momentum 0.9"
    }
    assert max(saved_steps(tmp_path / "late")) == STEPS


def test_a_checkpoint_within_a_round_is_of_every_worker(tmp_path: Path, world: Any) -> None:
    """Saved after epochs of six steps, in the middle of rounds of four; gone on from on three processes."""
    for name in ("diloco", "late"):
        options = {"parallel": {**MODES[name], "local_steps": 4}}
        undisturbed = resuming.train(None, **options)
        resuming.train(tmp_path / name, epochs=3, checkpoint_every="1 epochs", **options)
        assert saved_steps(tmp_path / name) == [6, 12, 18]
        for weights, records in world(3, going_on, str(tmp_path / name), options):
            assert error(weights, undisturbed[0]) < 1e-12
            assert same_records(records, undisturbed[1])


def going_on(rank: int, size: int, folder: str, options: dict[str, Any]) -> Any:
    return resuming.train(folder, resume=True, **options)


def test_another_mode_or_number_of_workers_is_refused(tmp_path: Path) -> None:
    resuming.train(tmp_path, epochs=1, parallel=MODES["diloco"])
    for other in (MODES["mean"], {**MODES["diloco"], "workers": 4}, None):
        with pytest.raises(wb.CheckpointError, match="parallel was 5 workers, 3 local steps, DiLoCo"):
            resuming.train(tmp_path, resume=True, parallel=other)


# what goes wrong -----------------------------------------------------------------------------------------


def refused(rank: int, size: int) -> list[str]:
    found = []

    def attempt(parallel: Any, part: Any, **options: Any) -> None:
        model = nn.Linear(4, 3)
        try:
            step = wb.parallel.step_for(parallel)(
                model,
                torch.optim.SGD(model.parameters(), lr=0.1),
                nn.CrossEntropyLoss(),
                engine=wb.parallel.engine(parallel),
            )
            for _ in range(3):
                step(part, **options)
        except Exception as caught:
            found.append(f"{type(caught).__name__}: {caught}")
        else:
            found.append("nothing")

    batch = torch.ones(4, 4), torch.zeros(4, dtype=torch.int64)
    attempt({"workers": 1, "stale": 1}, batch)
    for parallel in ({"workers": 3, "compress": "bf16"}, {"workers": 3, "local_steps": 2}):
        attempt(parallel, batch)  # 4 and 4 of 8 samples, where three workers have 2 and 6
        attempt(parallel, (batch[0][:2], batch[1][:2]) if rank == 0 else batch)  # 2 and 4 of 6: as it should be
        wrong = (torch.ones(2, 5), batch[1][:2]) if rank == 0 else batch
        attempt(parallel, wrong)  # the model fails on one process
    return found


def test_errors_travel(world: Any) -> None:
    first, second = world(2, refused)
    assert first[0] == second[0]
    assert "workers=1, but there are 2 processes" in first[0]
    for start in (1, 4):
        assert first[start] == second[start]
        assert "the processes gave [4, 4] samples" in first[start]
        assert first[start + 1] == second[start + 1] == "nothing"
        assert "mat1 and mat2" in first[start + 2]
        assert second[start + 2].startswith("PeerError: process 0 failed: RuntimeError: mat1 and mat2")


def test_steps_that_are_never_compared() -> None:
    """NaN records must not hide behind equality: local steps leave no record without a loss."""
    _, records = resuming.train(None, parallel=LOCAL["diloco"], epochs=2, log_every=1)
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [3, 6, 9, 12]
    assert all(math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]) for record in records[:2])
