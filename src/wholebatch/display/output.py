"""A text stream that never raises: what training writes to while people look elsewhere.

A reader that goes away (``| head``), a closed or full stream, an encoding without the character
that is written: none of them may stop a run that has cost hours.
"""

from __future__ import annotations

import os
import sys
from typing import TextIO


class Output:
    """A wrapper of ``stream`` whose ``write`` and ``flush`` never raise an ``Exception``.

    Characters that the stream's encoding lacks become ``?``. After the stream was found broken,
    everything is dropped and :attr:`alive` is False. ``None`` as a stream drops everything
    (``sys.stdout`` is None in programs without a console).

    >>> import io
    >>> output = Output(io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii"))
    >>> output.line("5 → 6")
    >>> raw.getvalue()
    b'5 ? 6\\n'
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.alive = stream is not None

    @property
    def encoding(self) -> str:
        """The stream's encoding; ``utf-8`` where it has none (it takes any text)."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal; False where it cannot say."""
        try:
            return bool(self.stream.isatty())  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError):
            return False

    def fileno(self) -> int:
        """Return the stream's file descriptor; raises OSError where it has none."""
        try:
            return self.stream.fileno()  # type: ignore[union-attr]
        except (AttributeError, ValueError) as error:
            raise OSError("this stream has no file descriptor") from error

    def write(self, text: str) -> int:
        """Write ``text`` as far as the stream can take it; return its length."""
        if self.alive and self.stream is not None:
            try:
                self.stream.write(self._encodable(text))
            except BlockingIOError:
                pass  # a full pipe that does not wait: this piece is lost, the next may pass
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        flush = getattr(self.stream, "flush", None)
        if self.alive and flush is not None:
            try:
                flush()
            except BlockingIOError:
                pass
            except (OSError, ValueError) as error:
                self._give_up(error)

    def line(self, text: str) -> None:
        """Write one line, free of control characters, and flush it."""
        self.write(printable(text) + "\n")
        self.flush()

    def _encodable(self, text: str) -> str:
        encoding = getattr(self.stream, "encoding", None)
        if not encoding:
            return text
        try:
            return text.encode(encoding, "replace").decode(encoding)
        except (LookupError, UnicodeError):
            return text.encode("ascii", "replace").decode("ascii")

    def _give_up(self, error: Exception) -> None:
        self.alive = False
        # What is still in the buffer of a standard stream is written once more when Python exits, and would
        # print a traceback then; the remedy is that of Python's documentation (signal, "Note on SIGPIPE").
        standard = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
        if isinstance(error, BrokenPipeError) and any(self.stream is stream for stream in standard):
            try:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            except OSError:
                pass


def printable(text: str) -> str:
    """``text`` in one line without control characters, so that nothing in it steers a terminal.

    >>> printable("a\\nb\\x1b[31mc  d")
    'a b[31mc  d'
    """
    return "".join(" " if char.isspace() else char for char in text if char.isprintable() or char.isspace())


def plain(text: str) -> str:
    """The same with single spaces: a message of several lines as one.

    >>> plain("one\\r\\n   two")
    'one two'
    """
    return " ".join(printable(text).split())
