"""What the launcher's environment says: which launch a process belongs to, and whether it may be started anew.

torchrun starts all processes anew after one was lost, and when a machine joins; each such set is a *world*, and all
worlds of one launch are one job. The number of restarts does not tell a first world from a later one: every machine
counts its own, and a machine that joins is not counted at all. So the worlds of a launch know each other by a name.
"""

from __future__ import annotations

import functools
import os
import secrets
import socket


def launch() -> str | None:
    """Return the name that all worlds of this launch have in common; None where nobody launched this process.

    That is torchrun's ``--rdzv-id``. Where it has none (a fixed set of machines, which nobody can join) the first
    process is always a child of the same agent, which names it as well.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run is None:
        return None
    return run if run not in ("", "none") else f"{socket.gethostname()}/{os.getppid()}"


@functools.cache
def process() -> str:
    """Return a name that no other process has; process numbers come again."""
    return secrets.token_hex(8)


def restarts_allowed() -> int:
    """Return how often the launcher may start the processes anew."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") or 0)
