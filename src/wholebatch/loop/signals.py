"""Signals that end a run in an orderly way: they are noted, and the run sees to them after its step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

SAVE, INTERRUPT, TERMINATE = 1, 2, 4  # bits, so that those of several processes can be put together

_NOTED = {"SIGUSR1": SAVE, "SIGINT": INTERRUPT, "SIGTERM": TERMINATE}


class Signals:
    """While it is open, SIGTERM, SIGINT and SIGUSR1 are only noted; a second SIGTERM or SIGINT stops at once.

    Handlers are installed in the main thread only (Python has no others), not for a signal that this process was
    started to ignore, and given back by :meth:`close`.
    """

    def __init__(self) -> None:
        self.noted = 0
        self._before: dict[int, Any] = {}

    def open(self) -> None:
        """Install the handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _NOTED:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._note)

    def close(self) -> None:
        """Give the handlers back. May be called again."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take(self) -> int:
        """Return what was noted; a request to save is noted once, one to stop stays."""
        noted = self.noted
        if noted:
            self.noted &= ~SAVE
        return noted

    def _note(self, number: int, frame: FrameType | None) -> None:
        bit = _NOTED[signal.Signals(number).name]
        if bit != SAVE and self.noted & (INTERRUPT | TERMINATE):
            _stop_at_once(number)
        self.noted |= bit


def exit_code(noted: int) -> int:
    """Return what a shell reports of a program that the signal ended: 143 for SIGTERM, 130 for SIGINT.

    >>> exit_code(TERMINATE | INTERRUPT), exit_code(INTERRUPT)
    (143, 130)
    """
    return 128 + (signal.SIGTERM if noted & TERMINATE else signal.SIGINT)


def _stop_at_once(number: int) -> None:
    """End the process without waiting for anything, a save under way included; that one leaves nothing half-written."""
    if sys.stdout is not None and sys.stdout.isatty():
        os.write(1, b"\x1b[?25h\n")  # a live display hides the cursor
    os._exit(128 + number)
