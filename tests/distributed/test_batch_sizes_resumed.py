"""A schedule of batch sizes, interrupted in the middle of an epoch and gone on with on other process counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import resuming
from resuming import interrupted

from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.errors import CheckpointError

SIZES = {"epoch": {0: 7, 1: 11, 3: 19}, "samples": {0: 7, 50: 11, 100: 19}}
OPTIONS: dict[str, Any] = {"batch_lr_rule": "linear", "log_every": 1, "checkpoint_every": "10 min"}


def options(unit: str, micro_batch: int) -> dict[str, Any]:
    return {**OPTIONS, "batch_size": BatchSizes(SIZES[unit], unit), "micro_batch": micro_batch}


@pytest.mark.parametrize("unit", ["epoch", "samples"])
def test_the_curve_is_that_of_an_undisturbed_run(world: Any, tmp_path: Path, unit: str) -> None:
    weights, records = resuming.train(None, **{**options(unit, 4), "checkpoint_every": None})
    steps = [record["samples"] for record in records if record["kind"] == "step"]
    sizes = [end - begin for begin, end in zip([0, *steps], steps, strict=False)]
    assert len(set(sizes)) > 3  # they do change
    folder = tmp_path / "run"
    for size, at, micro in [(1, 3, 2), (2, 8, 5)]:
        stopped = world(size, interrupted, str(folder), at, options(unit, micro))
        assert [code for code, *_ in stopped] == [143] * size
    for code, ours, found in world(3, interrupted, str(folder), None, options(unit, 3)):
        assert code == 0
        assert resuming.same_records(found, records)
        assert resuming.error(ours, weights) < 1e-11


def test_another_schedule_is_another_run(tmp_path: Path) -> None:
    interrupted(0, 1, str(tmp_path), 3, options("epoch", 4))
    other = {**options("epoch", 4), "batch_size": BatchSizes({0: 7, 2: 11})}
    with pytest.raises(CheckpointError, match="order"):
        resuming.train(str(tmp_path), resume=True, **other)
