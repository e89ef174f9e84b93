"""One of three fails: its message comes with its rank, the others end within 30 s with a code, nobody is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import HERE, OURS, TORCHRUN, ended, launched, wait_for, workers

LIMIT = 30  # seconds
PATIENCE = 10  # seconds until a process that hangs is given up
LONG = bool(os.environ.get("WHOLEBATCH_LONG_TESTS"))
long = pytest.mark.skipif(not LONG, reason="WHOLEBATCH_LONG_TESTS is not set")

UNDER_TORCHRUN = {
    "step": "[rank1]: RuntimeError: the disk of rank one is gone",
    "data": "[rank1]: RuntimeError: the disk of rank one is gone",
    "observer": "[rank0]: OSError: the observer's connection broke",
    "kill": "exitcode: -9) local_rank: 1",
    "segfault": "exitcode: -11) local_rank: 1",
    "hang": "LostError: another process did not answer in time",
    "mistake": "clip_norm is 1.0 in process 1 and None in process 0",
}
OFTEN = ("observer", "segfault")


def impatient(hangs: bool) -> dict[str, str]:
    """Only the time limit finds a process that hangs; elsewhere it must not be what ends the others."""
    return {"WHOLEBATCH_TIMEOUT": str(PATIENCE)} if hangs else {}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", [way if way in OFTEN else pytest.param(way, marks=long) for way in UNDER_TORCHRUN])
def test_under_torchrun(tmp_path: Path, way: str) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=3", str(HERE / "failing.py"), way, str(tmp_path / "run")]
    with launched(command, tmp_path, **impatient(way == "hang")) as process:
        process.known.update(wait_for(lambda: workers(process.pid), 120, "nobody starts"))  # type: ignore[attr-defined]
        code, _, errors = ended(process, 150)
    assert code != 0
    assert UNDER_TORCHRUN[way] in errors


def train(tmp_path: Path, *more: str, **environment: str) -> Any:
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE / "within")])
    words = ["train", "epochs=100000", "run_dir=run", "schedule=constant", "--processes", "3", *more]
    return launched([*OURS, *words], tmp_path, PYTHONPATH=path, **environment)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGKILL, 137, "wholebatch: process 1 was ended by SIGKILL"),
        pytest.param(signal.SIGSEGV, 139, "wholebatch: process 1 was ended by SIGSEGV", marks=long),
        pytest.param(signal.SIGSTOP, 1, "another process did not answer in time", marks=long),
    ],
)
def test_killed_or_frozen(tmp_path: Path, number: int, code: int, said: str) -> None:
    with train(tmp_path, **impatient(number == signal.SIGSTOP)) as process:
        assert "1/100000" in process.stdout.readline()
        ranks = {rank: pid for pid, rank in workers(process.pid).items()}
        process.known.update(ranks.values())
        begun = time.monotonic()
        os.kill(ranks[1], number)
        found, _, errors = ended(process, 100)
        took = time.monotonic() - begun
    assert (found, said in errors) == (code, True), errors
    assert "Traceback" not in errors
    assert took < LIMIT + (PATIENCE if number == signal.SIGSTOP else 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has gone")
@pytest.mark.timeout(180)
def test_the_launcher_is_killed(tmp_path: Path) -> None:
    with train(tmp_path, "checkpoint_every=1000000 steps") as process:
        assert "1/100000" in process.stdout.readline()
        ranks = workers(process.pid)
        process.known.update(ranks)
        assert len(ranks) == 3
        process.kill()
        wait_for(lambda: not any(map(runs, ranks)), LIMIT, "they train on")
        process.communicate(timeout=10)
    assert (tmp_path / "run" / "checkpoints" / "latest").exists()  # saved because of it


def runs(pid: int) -> bool:
    """Whether a process runs: one that ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


SMALL = ["model=vit", "model.width=12", "model.depth=1", "model.heads=3", "model.patch=4", "data=digits"]


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(["parallel.shard=3"], marks=long),
        ["parallel.shard=3", "parallel.reshard=layer"],
        ["parallel.tensor=3"],
    ],
)
def test_killed_in_each_layout(tmp_path: Path, layout: list[str]) -> None:
    with train(tmp_path, *SMALL, *layout) as process:
        assert "1/100000" in process.stdout.readline()
        ranks = {rank: pid for pid, rank in workers(process.pid).items()}
        process.known.update(ranks.values())
        begun = time.monotonic()
        os.kill(ranks[1], signal.SIGKILL)
        found, _, errors = ended(process, 100)
        took = time.monotonic() - begun
    assert found == 137
    assert "wholebatch: process 1 was ended by SIGKILL" in errors
    assert "Traceback" not in errors
    assert took < LIMIT


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("data", "wholebatch: process 1: OSError: the disk of rank one is gone"),
        pytest.param("observer", "wholebatch: process 0: OSError: the observer's connection broke", marks=long),
    ],
)
def test_failed_from_within(tmp_path: Path, way: str, said: str) -> None:
    with train(tmp_path, "--max-restarts", "1", BREAK=way) as process:
        while process.poll() is None:
            process.known.update(workers(process.pid))
            time.sleep(0.05)
        code, _, errors = ended(process, 10)
    assert code == 1
    assert errors.count(said) == 2  # it failed again
    assert errors.count("wholebatch: all processes start anew, restart 1 of 1") == 1
    assert len(process.known) == 6


@pytest.mark.timeout(120)
def test_a_mistake_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").write_text("{}\n")
    with train(tmp_path, "--max-restarts", "2") as process:
        code, output, errors = ended(process, 100)
    assert (code, output) == (2, "")
    assert errors.count("already holds a run") == 1
    assert "start anew" not in errors
