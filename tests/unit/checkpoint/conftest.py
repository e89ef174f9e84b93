"""Worlds in processes of their own, and what stands in a folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wholebatch.checkpoint import Fence, Store


class Worlds:
    """Starts processes that save, and waits for them; all of them are gone at the end."""

    def __init__(self):
        server = Path(__file__).with_name("world_server.py")
        self._server = subprocess.Popen(
            [sys.executable, str(server)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert json.loads(self._server.stdout.readline()) == {"ready": True}

    def _ask(self, **command):
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, do, **arguments):
        """Fork a world and return its process id."""
        return self._ask(do=do, **arguments)["pid"]

    def wait(self, pid):
        """Return "stopped", or the exit code (negative for a signal)."""
        answer = self._ask(do="wait", pid=pid)
        return "stopped" if answer["stopped"] else answer["exit"]

    def close(self):
        self._server.stdin.close()
        self._server.wait(timeout=20)
        self._server.stdout.close()


@pytest.fixture(scope="session")
def worlds():
    found = Worlds()
    yield found
    found.close()


@pytest.fixture
def tree():
    """A function that gives everything below a folder: path to content and time of change."""

    def of(folder):
        found = {}
        for base, folders, files in os.walk(folder):
            for name in folders:
                found[os.path.join(base, name)] = None
            for name in files:
                path = os.path.join(base, name)
                found[path] = (Path(path).read_bytes(), os.stat(path).st_mtime_ns)
        return found

    return of


@pytest.fixture
def state():
    """A function that makes a small state."""

    def of(step, elements=16):
        return {"step": step, "model": {"w": torch.full((elements,), float(step)), "n": torch.tensor(step)}}

    return of


@pytest.fixture
def hidden():
    """A function that lists what is left in staging folders, and folders that were moved away."""

    def of(run):
        folder = Path(run) / "checkpoints"
        return sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.relative_to(folder).parts[0].startswith((".staging", ".fenced")) and path.parent != folder
        ) + [path.name for path in folder.glob(".fenced*")]

    return of


@pytest.fixture
def said():
    return []


@pytest.fixture
def store(tmp_path, said):
    store = Store(tmp_path / "run", say=said.append, fence=Fence.take(tmp_path / "run"))
    yield store
    store.fence.close()
