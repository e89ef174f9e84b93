"""Worlds of real processes over gloo: a file store, no port, a hard time limit, nobody left behind.

The processes are forked from a server that has imported torch and this library and done nothing else, since importing
takes longer than most of these tests. Its compiler, which every optimizer imports when it is made, takes longest.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)  # so that the server finds the worker

import worker  # noqa: E402

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "pytest", "wholebatch.api"])


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., list[Any]]]:
    """``start(size, function, *arguments)`` starts ``function(rank, size, *arguments)`` in every process."""
    number, everyone = 0, []

    def run(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        nonlocal number
        number += 1
        folder = tmp_path / f"world-{number}"
        folder.mkdir()
        (folder / "arguments").write_bytes(pickle.dumps(arguments))
        started = [
            context.Process(target=worker.main, args=(str(request.path), function.__name__, rank, size, str(folder)))
            for rank in range(size)
        ]
        for process in started:
            process.start()
            process.folder = folder  # type: ignore[attr-defined]
        everyone.extend(started)
        return started

    yield run
    for process in everyone:
        process.kill()
        process.join()


@pytest.fixture
def world(start: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``world(size, function, *arguments)`` runs ``function(rank, size, *arguments)`` in every process."""

    def run(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 100) -> list[Any]:
        started = start(size, function, *arguments)
        folder = started[0].folder
        for process in started:
            process.join(timeout)
        left = [process for process in started if process.is_alive()]
        for process in left:
            process.kill()
            process.join()
        errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
        assert not errors, "\n".join(errors)
        assert not left, f"{len(left)} of {size} processes were still at work after {timeout} s"
        assert [process.exitcode for process in started] == [0] * size
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]

    return run
