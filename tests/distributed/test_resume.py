"""A run that is stopped or killed, and goes on with another number of processes, is the run that nobody disturbed."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import resuming
import torch
from resuming import BATCH, STEPS, error, interrupted, same_records, saved_steps

from wholebatch.core.processes import current
from wholebatch.display import read_history

BAR = 1e-12


@pytest.fixture(scope="module")
def undisturbed() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = resuming.train(None)
    torch.set_num_threads(threads)
    return result


def check(folder: Path, result: Any, undisturbed: Any) -> None:
    code, weights, records = result
    assert code == 0
    assert error(weights, undisturbed[0]) < BAR
    assert same_records(records, undisturbed[1])
    assert same_records(resuming.plain(read_history(folder).records), records)


def test_a_chain_of_process_counts_and_micro_batches(world: Any, tmp_path: Path, undisturbed: Any) -> None:
    folder = tmp_path / "run"
    for size, at, micro in [(1, 4, 2), (2, 9, 5), (3, 15, "auto")]:
        options = {"micro_batch": micro, "checkpoint_every": "10 min"}
        results = world(size, interrupted, str(folder), at, options)
        assert [code for code, *_ in results] == [143] * size
        assert saved_steps(folder)[-1] == at
        assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[-1][1], strict=True))
    for result in world(2, interrupted, str(folder), None, {"micro_batch": 1}):
        check(folder, result, undisturbed)
    assert max(saved_steps(folder)) == STEPS


def saving(rank: int, size: int, folder: str) -> Any:
    """SIGUSR1 to the last rank saves and goes on, and signals that come before the training are not ours."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    observer = resuming.At(rank, {5: resuming.send(signal.SIGUSR1)} if rank == size - 1 else {})
    weights, records = resuming.train(folder, observers=[observer], checkpoint_every="3 epochs")
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    assert len(set(current().exchange(len(records)))) == 1
    return 0, weights, records


def test_a_request_to_save_to_any_rank(world: Any, tmp_path: Path, undisturbed: Any) -> None:
    for result in world(2, saving, str(tmp_path / "run")):
        check(tmp_path / "run", result, undisturbed)
    assert saved_steps(tmp_path / "run") == [5, 18, STEPS]


def refused(rank: int, size: int, folder: str) -> str:
    try:
        resuming.train(folder, resume=True, batch_size=BATCH + 1)
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"
    return "nothing"


def missing(rank: int, size: int, folder: str) -> str:
    try:
        resuming.train(None, resume=folder)
    except Exception as caught:
        return f"{type(caught).__name__}: {caught}"
    return "nothing"


def test_what_is_refused_is_refused_on_every_rank(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(0, 1, str(folder), 4, {})
    before = (folder / "history.jsonl").read_bytes()
    for message in world(2, refused, str(folder)):
        assert message.startswith("CheckpointError")
        assert "batch_size was 7 and is now 8" in message
    assert (folder / "history.jsonl").read_bytes() == before
    first, second = world(2, missing, str(tmp_path))
    assert first.startswith("CheckpointError: resume=")
    assert second.startswith("PeerError: process 0 failed: CheckpointError")


def killed(rank: int, size: int, folder: str) -> Any:
    slow = resuming.At(rank, dict.fromkeys(range(STEPS + 1), lambda: time.sleep(0.01)))
    weights, records = resuming.train(folder, resume=True, checkpoint_every="1 steps", observers=[slow])
    return 0, weights, records


KILLS, SEEDS = 10, [4]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_kills(start: Any, world: Any, tmp_path: Path, undisturbed: Any, seed: int) -> None:
    folder, draw, killed_at = tmp_path / "run", random.Random(seed), []
    size = 2
    for _ in range(KILLS):
        processes = start(size, killed, str(folder))
        was = len(saved_steps(folder)) and saved_steps(folder)[-1]
        while all(process.is_alive() for process in processes):
            steps = saved_steps(folder)
            if steps and steps[-1] > was:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        draw.choice(processes).kill()
        for process in processes:
            process.join(0.2)
            process.kill()
            process.join()
        killed_at.append(saved_steps(folder)[-1])
        size = draw.choice([1, 2, 3])
    assert killed_at == sorted(killed_at)  # each came further, or at least not back
    assert len(set(killed_at)) > 3
    for result in world(draw.choice([1, 2, 3]), killed, str(folder)):
        check(folder, result, undisturbed)
