"""A process that is gone, or waits for nobody: what torch says of it to the others, in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed

from wholebatch.core.errors import LostError
from wholebatch.core.processes import everyone

# what gloo says: the other side is closed, or silent
_GONE = re.compile(r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection refused", re.IGNORECASE)
_SILENT = re.compile(r"Timed out waiting|timed out after|Application timeout", re.IGNORECASE)
_GLOO = re.compile(r"gloo|wait\w* *timeout|timed out waiting \d+ms", re.IGNORECASE)


@contextmanager
def losses_named() -> Iterator[None]:
    """Around what processes do together, or a function that does: where one is lost, the others say so.

    Raises:
        LostError: torch found another process gone or silent.
    """
    try:
        yield
    except RuntimeError as error:
        reason = lost(error) if everyone().size > 1 else None
        if reason is None:
            raise
        raise LostError(reason) from error


def lost(error: BaseException) -> str | None:
    """Return what an error of torch says about a lost process, in one line; None where it is about something else.

    >>> lost(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:53174"))
    'another process is gone (Connection closed by peer)'
    >>> lost(RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:84] Application timeout caused pair closure"))[:44]
    'another process did not answer in time; it h'
    >>> lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    text = str(error)
    ours = isinstance(error, distributed.DistError) or _GLOO.search(text)
    if ours and (found := _GONE.search(text)):
        return f"another process is gone ({found[0]})"
    if ours and _SILENT.search(text):
        return (
            "another process did not answer in time; it hangs, or works longer than the processes wait for each other "
            "(WHOLEBATCH_TIMEOUT=SECONDS, or wb.parallel.init(timeout=))"
        )
    return None
