"""Out of memory on a CPU is a plain RuntimeError; a limit of the operating system makes the allocator raise it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc are Linux's")
@pytest.mark.parametrize(
    ("micro", "wrong", "said"),
    [("64", "nothing", "redone"), ("auto", "nothing", "cut"), ("64", "error", "something else is wrong")],
)
def test_a_step_in_limited_memory(micro: str, wrong: str, said: str) -> None:
    command = [sys.executable, str(Path(__file__).parent / "under_a_limit.py"), micro, wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if wrong == "error":  # as plain an error, and no memory of it
        assert done.returncode == 1
        assert said in done.stderr.splitlines()[-1]
        assert done.stderr.splitlines()[-1].startswith("RuntimeError")
        return
    assert done.returncode == 0, done.stderr
    pieces, warned, samples, _ = map(int, done.stdout.split())
    assert samples == 64
    assert pieces > 1
    assert warned > 0 or said == "cut"  # what "auto" takes fits, or nearly so: threads reserve addresses as well
