"""Who joins by ``wb.parallel.init()`` ends cleanly: gloo may abort where its group is alive at an interpreter's end."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import worker
from torch import distributed

import wholebatch as wb

EXITS, SIZE = 20, 2
context = multiprocessing.get_context("forkserver")

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
from test_exit import joining
joining({folder!r})
"""


def joining(folder: str) -> None:
    """Join, exchange, and leave the group alive, as a training script does."""

    def last() -> None:
        """Exit handlers run backwards: this one sees what ``init`` has left."""
        if not distributed.is_initialized():
            Path(folder, f"left-{rank}").touch()

    atexit.register(last)
    torch.set_num_threads(1)
    processes = wb.parallel.init()
    rank = processes.rank
    assert wb.parallel.init().rank == rank
    for _ in range(3):
        processes.sum_(torch.ones(1000))


def environment(store: Any, rank: int) -> dict[str, str]:
    """What torchrun tells its workers; the store is the parent's, on a port that the system chose."""
    return {
        "WORLD_SIZE": str(SIZE), "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip


def new_store() -> Any:
    return distributed.TCPStore("localhost", 0, is_master=True, timeout=timedelta(seconds=60))


def test_twenty_exits(tmp_path: Path) -> None:
    for number in range(EXITS // SIZE):
        folder, store = tmp_path / str(number), new_store()
        folder.mkdir()
        started: list[Any] = [
            context.Process(
                target=worker.interpreter, args=(__file__, "joining", environment(store, rank), str(folder))
            )
            for rank in range(SIZE)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(60)
            process.kill()
            process.join()
        assert [process.exitcode for process in started] == [0] * SIZE
        assert sorted(path.name for path in folder.iterdir()) == ["left-0", "left-1"]


def test_interpreters_of_their_own(tmp_path: Path) -> None:
    store = new_store()
    script = SCRIPT.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script],
            env={**os.environ, **environment(store, rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        for process in started:
            _, said = process.communicate(timeout=100)
            assert process.returncode == 0, said
            assert "terminate called" not in said
    finally:
        for process in started:
            process.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left-0", "left-1"]
