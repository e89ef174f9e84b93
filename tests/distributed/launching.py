"""Launchers as people start them, and their processes: seen, killed, waited for, and none left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
OURS = [sys.executable, "-m", "wholebatch"]
SHARING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def environment(**more: str) -> dict[str, str]:
    """That of the tests, with the sources first and without what a launcher would have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "WHOLEBATCH"))}
    path = os.pathsep.join([str(HERE.parents[1] / "src"), str(HERE)])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", SHARING: "1", "WHOLEBATCH_TIMEOUT": "60", **more}


@contextmanager
def launched(command: list[str], folder: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Start ``command``; whatever of it is alive at the end is killed, and an error where that was needed."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    known: set[int] = set()
    process.known = known  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        known |= set(workers(process.pid))
        if process.poll() is None:
            process.kill()
        process.wait()
        for pid in known:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


def workers(pid: int) -> dict[int, int]:
    """The processes that a launcher started to train: number to rank."""
    found = {}
    with suppress(OSError):
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in listed.read_text().split():
                with suppress(OSError):
                    words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                    named = dict(word.split(b"=", 1) for word in words if b"=" in word)
                    if b"LOCAL_RANK" in named:
                        found[int(child)] = int(named[b"RANK"])
    return found


def wait_for(what: Any, seconds: float, why: Any) -> Any:
    """Return what ``what()`` gives as soon as it is true."""
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, f"after {seconds} s: {why() if callable(why) else why}"
        time.sleep(0.01)
    return found


def ended(process: subprocess.Popen[str], seconds: float) -> tuple[int, str, str]:
    """Wait; return exit code, standard output and error. None of its workers may be alive then."""
    output, errors = process.communicate(timeout=seconds)
    alive = [pid for pid in process.known if Path(f"/proc/{pid}").exists()]  # type: ignore[attr-defined]
    assert not alive, f"left behind: {alive}"
    return process.returncode, output, errors
