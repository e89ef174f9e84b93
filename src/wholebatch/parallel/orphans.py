"""A process whose launcher is gone is told to stop, so that none trains on with nobody watching (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Any

LAUNCHER = "WHOLEBATCH_LAUNCHER"  # the launcher's process number, in the environment of those that it starts
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def stop_without_launcher() -> None:
    """Have SIGTERM sent to this process when the launcher that started it ends, however it ends.

    A run saves and stops then, as on any SIGTERM. Nothing happens where nobody, or torchrun, launched this process, or
    outside of the main thread.
    """
    launcher = os.environ.pop(LAUNCHER, None)  # what this process starts has another parent
    if launcher is None or sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return

    def stop_once(*_: Any) -> None:
        # The system signals for every thread of the launcher that ends, and a second SIGTERM would stop without saving.
        if os.getppid() != int(launcher):
            signal.signal(signal.SIGRTMIN, signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGRTMIN, stop_once)
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGRTMIN))
    stop_once()  # it may have gone before it could be asked for
