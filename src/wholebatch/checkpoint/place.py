"""Where a run is kept: a folder of this machine, or a URL. The one place that asks which of the two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wholebatch.checkpoint import fence, remote_fence
from wholebatch.checkpoint.remote_store import RemoteStore
from wholebatch.checkpoint.store import Store
from wholebatch.core.url import Url


def take(run_dir: Path | Url) -> fence.Fence | remote_fence.RemoteFence:
    """Take the run folder over; raises as :meth:`Fence.take`."""
    return remote_fence.RemoteFence.take(run_dir) if isinstance(run_dir, Url) else fence.Fence.take(run_dir)


def store_at(run_dir: Path | Url, *, say: Callable[[str], None] | None = None, **options: Any) -> Store | RemoteStore:
    """Return the checkpoints of the run; ``options`` are those of :class:`Store`."""
    kind = RemoteStore if isinstance(run_dir, Url) else Store
    return kind(run_dir, say=say, **options)  # type: ignore[arg-type]


def taken_by_earlier_world(run_dir: Path | Url) -> bool:
    """Return whether the last one that took the run folder belonged to the launch that this process belongs to.

    The launcher has started the processes anew then, and they go on with that run.
    """
    if isinstance(run_dir, Url):
        return remote_fence.taken_by_earlier_world(run_dir)
    return fence.taken_by_earlier_world(run_dir)
