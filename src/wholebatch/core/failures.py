"""What went wrong in one process is told to all of those that share its work, and raised in every one of them."""

from __future__ import annotations

from wholebatch.core.errors import PeerError
from wholebatch.core.processes import Processes


def raise_together(processes: Processes, error: BaseException | None) -> None:
    """Raise in all processes where any of them comes with an ``error``; all call it. Nothing happens where none does.

    Raises:
        PeerError: another process failed, and which one; this one's own ``error`` is raised where it has one.
    """
    reasons = processes.gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise PeerError(f"process {rank} failed: {reason}")
