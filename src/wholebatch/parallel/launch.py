"""Several processes on this machine, started and watched by torch's own elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from wholebatch.core.errors import ConfigError
from wholebatch.parallel.join import SHARING


def launch(arguments: Sequence[str], processes: int, max_restarts: int = 0) -> int:
    """Run ``python -m wholebatch`` with ``arguments`` in ``processes`` processes; return the exit code.

    The exit code is 0, or that of the process that failed first; the others are stopped then.

    Raises:
        ConfigError: ``processes`` is not a whole number of 1 or more.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ConfigError(f"--processes {processes!r}: expected a whole number, 1 or more")
    os.environ[SHARING] = "1"  # torch's default lets most elastic restarts hang
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the failed process has said why
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.2,
        local_addr="localhost",
    )
    before = _hand_on_requests_to_save()
    try:
        elastic_launch(config, sys.executable)("-m", "wholebatch", *arguments)
    except ChildFailedError as failed:
        codes = [failure.exitcode for failure in failed.failures.values()]
        return _exit_code(min(codes, key=lambda code: code < 0))  # a process that was stopped is no cause
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    finally:
        if before is not None:
            signal.signal(signal.SIGUSR1, before)
    return 0


def _hand_on_requests_to_save() -> Any:
    """Send SIGUSR1, which would end this process, on to those that train; return the handler there was, if any."""
    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGUSR1, lambda number, frame: _tell_workers(number))


def _tell_workers(number: int) -> None:
    """Signal the children that have a rank, as far as the system tells who they are."""
    for listed in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for child in listed.read_text().split():
            with suppress(OSError):
                if b"\0LOCAL_RANK=" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                    os.kill(int(child), number)


def _exit_code(code: int) -> int:
    """A shell's code for a process that a signal ended."""
    return 128 - code if code < 0 else code or int(signal.SIGTERM)
