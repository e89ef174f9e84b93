"""Which display a stream gets: the live one on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TextIO

from wholebatch.core.record import Observer
from wholebatch.display.lines import Lines
from wholebatch.display.live import Live
from wholebatch.display.output import Output

_NO = {"", "0", "false", "no"}


def choose(stream: TextIO | None = None, *, environ: Mapping[str, str] | None = None) -> Observer:
    """Return the display for ``stream`` (``sys.stdout`` by default).

    Plain lines where the stream is no terminal, where ``TERM`` is ``dumb`` or ``unknown``, and where
    ``CI`` is set, since a build's log keeps every drawing. ``NO_COLOR``, set to anything but nothing,
    makes the live display write no colours (https://no-color.org).

    >>> import io
    >>> type(choose(io.StringIO())).__name__
    'Lines'
    """
    stream = sys.stdout if stream is None else stream
    environ = os.environ if environ is None else environ
    if not is_screen(stream, environ):
        return Lines(stream)
    return Live(stream, color=not environ.get("NO_COLOR"))


def is_screen(stream: TextIO | None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether ``stream`` is a terminal on which something can change in place."""
    environ = os.environ if environ is None else environ
    plain = environ.get("TERM", "").lower() in ("dumb", "unknown") or environ.get("CI", "").lower() not in _NO
    return not plain and Output(stream).isatty()
