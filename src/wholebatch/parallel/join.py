"""Joining the process group that torchrun's environment describes, and leaving it cleanly."""

from __future__ import annotations

import atexit
import os
import time
import warnings
from datetime import timedelta

import torch
from torch import distributed

from wholebatch.core.errors import InputError, LostError
from wholebatch.core.launched import restarts_allowed
from wholebatch.core.processes import Processes, everyone
from wholebatch.parallel.lost import lost
from wholebatch.parallel.orphans import stop_without_launcher

SHARING = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
TIMEOUT = "WHOLEBATCH_TIMEOUT"
_WAIT = 600.0  # seconds
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def init(timeout: float | None = None) -> Processes:
    """Join the processes that torchrun started, if it did; return them. Calling it again changes nothing.

    Takes gloo on the CPU and nccl on GPUs (each process the GPU of its local rank), divides the CPU's threads among
    the processes of a machine unless ``OMP_NUM_THREADS`` says otherwise, and leaves the group at the end of the
    interpreter, where gloo aborts in about half of all runs when its group is still alive.

    Args:
        timeout: seconds that processes wait for each other before they give up; None is ``WHOLEBATCH_TIMEOUT`` in the
            environment, or 600.

    Raises:
        InputError: part of torchrun's environment is missing, or the timeout is no number of seconds.
        LostError: the others did not come.
    """
    stop_without_launcher()
    _warn_of_shared_store()
    size = os.environ.get("WORLD_SIZE")
    if not distributed.is_available() or distributed.is_initialized() or size is None or size == "1":
        return everyone()
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE={size} is set, but {', '.join(missing)} is not; start with torchrun or --processes"
        )
    seconds = _seconds(timeout)
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    else:
        _divide_threads(int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
    except RuntimeError as error:  # of torch's store: DistNetworkError, DistStoreError
        if (reason := lost(error)) is None:
            raise
        raise LostError(f"the processes do not come together: {reason}") from error
    atexit.register(_leave)
    return everyone()


def _divide_threads(local_size: int) -> None:
    """Torchrun sets one thread per process where nobody chose; the cores there are, divided, are better."""
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // local_size))


def _seconds(timeout: float | None) -> float:
    """How long to wait for the others."""
    said = os.environ.get(TIMEOUT, "")
    try:
        seconds = timeout if timeout is not None else float(said or _WAIT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        given = f"timeout={timeout!r}" if timeout is not None else f"{TIMEOUT}={said}"
        raise InputError(f"{given}: expected a number of seconds, more than 0")
    return seconds


def _warn_of_shared_store() -> None:
    """Torchrun's store, shared with its rendezvous, makes most elastic restarts hang."""
    if restarts_allowed() and os.environ.get(SHARING) != "1" and os.environ.get("RANK") == "0":
        warnings.warn(
            f"torchrun may restart the processes, and with its shared store most restarts hang; set {SHARING}=1 before "
            "torchrun starts, or use wholebatch train --processes",
            UserWarning,
            stacklevel=3,
        )


def _leave() -> None:
    if distributed.is_initialized():
        time.sleep(0.05)  # lets the peers finish their last exchange
        distributed.destroy_process_group()
