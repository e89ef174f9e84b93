"""Processes that are started anew go on by themselves: each step once, and the weights of the undisturbed run."""

from __future__ import annotations

import os
import pickle
import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import resuming
import torch
from launching import HERE, OURS, SHARING, TORCHRUN, ended, launched, wait_for, workers
from resuming import error, same_records, saved_steps

import wholebatch as wb
from wholebatch.checkpoint import Fence
from wholebatch.core import launched as launched_core
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


@pytest.mark.timeout(120 + 40 * RESTARTS)
def test_restarts_in_a_row(tmp_path: Path, undisturbed: Any) -> None:
    """Each kill hits a random process once the world has got at least a step further than the one before."""
    draw, folder, result = random.Random(7), tmp_path / "run", tmp_path / "result"
    command = ["--standalone", "--nproc-per-node=2", f"--max-restarts={RESTARTS}", str(HERE / "elastic.py")]
    with launched([*TORCHRUN, *command, str(folder), "0.25", str(result)], tmp_path) as process:
        killed: set[int] = set()

        def further(was: int) -> dict[int, int] | None:
            now = workers(process.pid)
            fresh = len(now) == 2 and not killed & set(now)
            return now if fresh and newest(folder) > was else None

        for number in range(RESTARTS):
            was = newest(folder)
            now = wait_for(partial(further, was), 120, f"restart {number} did not come further than step {was}")
            process.known.update(now)  # type: ignore[attr-defined]
            time.sleep(draw.uniform(0, 0.1))
            os.kill(draw.choice(sorted(now)), signal.SIGKILL)
            killed |= set(now)
        code, _, errors = ended(process, 120)
    assert code == 0, errors
    assert check(folder, result, undisturbed) == ["2", str(RESTARTS)]


@pytest.mark.timeout(180)
def test_the_command_line_goes_on_in_the_folder_it_made(tmp_path: Path) -> None:
    words = ["train", "epochs=100000", "schedule=constant", "checkpoint_every=2 steps"]
    more = ["--processes", "2", "--max-restarts", "1"]
    environment = {SHARING: "0"}  # the launcher sets it
    with launched([*OURS, *words, *more], tmp_path, **environment) as process:
        assert "1/100000" in process.stdout.readline()
        (folder,) = (tmp_path / "runs").iterdir()
        before = workers(process.pid)
        process.known.update(before)  # type: ignore[attr-defined]
        was = newest(folder)
        os.kill(next(pid for pid, rank in before.items() if rank == 1), signal.SIGKILL)
        wait_for(
            lambda: len(workers(process.pid)) == 2 and not before.keys() & workers(process.pid).keys(), 120, "none"
        )
        process.known.update(workers(process.pid))  # type: ignore[attr-defined]
        wait_for(lambda: newest(folder) > was + 4, 120, "the run does not go on")
        process.send_signal(signal.SIGTERM)
        code, output, errors = ended(process, 60)
    assert code == 143
    lost, *said = errors.splitlines()
    assert lost.startswith("wholebatch: process 0: another process is gone (Connection ")
    assert said == [
        "wholebatch: process 1 was ended by SIGKILL (the system does so when memory runs out)",
        "wholebatch: all processes start anew, restart 1 of 1",
        "wholebatch: terminated",
    ]
    assert SHARING not in errors
    assert output.splitlines()[-1] == f"saved; go on with: wholebatch train --resume runs/{folder.name}"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    epochs = [record["epoch"] for record in read_history(folder).select("test")]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_under_torchrun(tmp_path: Path, number: int) -> None:
    """One rank alone gets it: all finish the step and save; the run then goes on where another launch lets it."""
    if number == signal.SIGINT and RESTARTS == 3:
        pytest.skip("WHOLEBATCH_LONG_TESTS is not set")
    folder = tmp_path / "run"
    command = ["--standalone", "--nproc-per-node=2", str(HERE / "elastic.py"), str(folder), "0.2", str(tmp_path / "r")]
    with launched([*TORCHRUN, *command], tmp_path) as process:
        wait_for(lambda: newest(folder) > 1, 120, "nobody trains")
        ranks = {rank: pid for pid, rank in workers(process.pid).items()}
        process.known.update(ranks.values())  # type: ignore[attr-defined]
        os.kill(ranks[1], number)
        code, _, errors = ended(process, 60)
    assert code == 1  # torchrun's own
    for rank in (0, 1):
        assert f"exitcode  : {128 + number} " in errors, rank
    assert newest(folder) < resuming.STEPS


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    words = ["train", "epochs=100000", "schedule=constant", "run_dir=run", "--processes", "2"]
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE / "within")])
    with launched([*OURS, *words], tmp_path, PYTHONPATH=path, BREAK="slow step") as process:
        ranks = wait_for(lambda: (tmp_path / "slow").exists() and workers(process.pid), 120, "nobody trains")
        process.known.update(ranks)  # type: ignore[attr-defined]
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert process.poll() is None  # the step is being finished
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code, _, errors = ended(process, 20)
    assert code == 143, errors
    assert time.monotonic() - begun < 10  # a step takes a minute
    assert saved_steps(tmp_path / "run") == []


def test_a_process_without_the_variable_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.warns(UserWarning, match=f"most restarts hang; set {SHARING}=1") as said:
        wb.parallel.init()
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    for name, value in ((SHARING, "1"), ("RANK", "1"), ("TORCHELASTIC_MAX_RESTARTS", "0")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            wb.parallel.init()  # warnings are errors


@pytest.mark.parametrize("said", ["0", "-1", "soon", "inf"])
def test_a_timeout_that_is_none(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WHOLEBATCH_TIMEOUT", said)
    with pytest.raises(wb.InputError, match=f"WHOLEBATCH_TIMEOUT={said}: expected a number of seconds"):
        wb.parallel.init()


def test_worlds_of_one_launch_go_on_and_others_are_refused(tmp_path: Path, monkeypatch: Any, undisturbed: Any) -> None:
    def leave(number: int) -> None:
        with pytest.raises(SystemExit):
            resuming.train(tmp_path, observers=[resuming.At(0, {number: resuming.send(signal.SIGTERM)})])

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    leave(4)
    with pytest.raises(wb.RunFolderError, match="already holds a run"):
        resuming.train(tmp_path)  # the same process, a second time
    monkeypatch.setattr(launched_core, "process", lambda: "the process that came after it")
    leave(9)  # it got further
    monkeypatch.setattr(launched_core, "process", lambda: "a stranger")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-2")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # a restart does not make another's run one's own
    with pytest.raises(wb.RunFolderError, match="already holds a run"):
        resuming.train(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    monkeypatch.setattr(launched_core, "process", lambda: "and the one after that")
    weights, records = resuming.train(tmp_path)
    assert error(weights, undisturbed[0]) < BAR
    assert same_records(records, undisturbed[1])


def test_a_restart_before_the_first_checkpoint_goes_on_from_the_other_run(
    tmp_path: Path, monkeypatch: Any, undisturbed: Any
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    resuming.interrupted(0, 1, str(first), 9, {})
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    Fence.take(second).close()  # a world that died before it saved
    monkeypatch.setattr(launched_core, "process", lambda: "another")
    seen: list[int] = []
    watch = resuming.At(0, {10: lambda: seen.append(10), 1: lambda: seen.append(1)})
    weights, records = resuming.train(second, resume=first, observers=[watch])
    assert seen == [10]
    assert error(weights, undisturbed[0]) < BAR
    assert same_records(records, undisturbed[1])
