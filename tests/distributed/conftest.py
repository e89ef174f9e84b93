"""Worlds of real processes over gloo: a file store, no port, a hard time limit, nobody left behind."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., list[Any]]:
    """``world(size, function, *arguments)`` runs ``function(rank, size, *arguments)`` of the test's file in every process."""
    number = 0

    def run(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 100) -> list[Any]:
        nonlocal number
        number += 1
        folder = tmp_path / f"world-{number}"
        folder.mkdir()
        (folder / "arguments").write_bytes(pickle.dumps(arguments))
        worker = str(Path(__file__).parent / "worker.py")
        command = [sys.executable, "-W", "error", worker, str(request.path), function.__name__]
        started = [subprocess.Popen([*command, str(rank), str(size), str(folder)]) for rank in range(size)]
        try:
            codes = [process.wait(timeout) for process in started]
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
        assert not errors, "\n".join(errors)
        assert codes == [0] * size
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]

    return run
