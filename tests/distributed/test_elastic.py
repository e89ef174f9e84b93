"""Processes that are started anew go on by themselves: each step once, and the weights of the undisturbed run."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import resuming
import torch
from launching import HERE, OURS, SHARING, TORCHRUN, ended, launched, wait_for, workers
from resuming import error, same_records, saved_steps

from wholebatch.display import read_history

BAR = 1e-12
RESTARTS = 12 if os.environ.get("WHOLEBATCH_LONG_TESTS") else 3


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = resuming.train(None)
    torch.set_num_threads(threads)
    return result


def check(folder: Path, result: Path, undisturbed: Any) -> list[str]:
    weights, records, world = pickle.loads(result.read_bytes())
    assert error(weights, undisturbed[0]) < BAR
    assert same_records(records, undisturbed[1])
    assert same_records(resuming.plain(read_history(folder).records), records)
    return world


def newest(folder: Path) -> int:
    return max(saved_steps(folder), default=0)


@pytest.mark.timeout(300)
def test_restarts_in_a_row(tmp_path: Path, undisturbed: Any) -> None:
    """Each kill hits a random process once the world has got at least a step further than the one before."""
    draw, folder, result = random.Random(7), tmp_path / "run", tmp_path / "result"
    command = ["--standalone", "--nproc-per-node=2", f"--max-restarts={RESTARTS}", str(HERE / "elastic.py")]
    with launched([*TORCHRUN, *command, str(folder), "0.25", str(result)], tmp_path) as process:
        killed: set[int] = set()
        for number in range(RESTARTS):
            was = newest(folder)

            def further(was: int = was) -> dict[int, int] | None:
                now = workers(process.pid)
                fresh = len(now) == 2 and not killed & set(now)
                return now if fresh and newest(folder) > was else None

            now = wait_for(further, 60, f"restart {number} did not come further than step {was}")
            process.known.update(now)  # type: ignore[attr-defined]
            time.sleep(draw.uniform(0, 0.1))
            os.kill(draw.choice(sorted(now)), signal.SIGKILL)
            killed |= set(now)
        code, _, errors = ended(process, 120)
    assert code == 0, errors
    assert check(folder, result, undisturbed) == ["2", str(RESTARTS)]
