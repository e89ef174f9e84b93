"""Several processes on this machine, started, watched and started anew by torch's own elastic agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wholebatch.core.errors import ConfigError
from wholebatch.parallel.join import SHARING
from wholebatch.parallel.orphans import LAUNCHER

if TYPE_CHECKING:
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

_MISTAKE = 2  # the exit code of a process that was asked for what cannot be
_STOPPED = (128 + 2, 128 + 15)  # of one that a person stopped: it has saved, and the others with it
_GRACE = 10  # seconds from SIGTERM to SIGKILL for those that run on after one has failed; they have nothing to save
_ENDED_BY_AGENT = (-int(signal.SIGTERM), 128 + int(signal.SIGTERM))


def launch(arguments: Sequence[str], processes: int, max_restarts: int = 0) -> int:
    """Run ``python -m wholebatch`` with ``arguments`` in ``processes`` processes; return the exit code.

    Where one fails the others are stopped, and all are started anew, ``max_restarts`` times at most; not after a
    mistake in what was asked (2), nor after one that was told to stop (130, 143). The exit code is 0, or that of the
    process that failed first.

    Raises:
        ConfigError: ``processes`` is not a whole number of 1 or more, or ``max_restarts`` not one of 0 or more.
    """
    for name, value, least in (("--processes", processes, 1), ("--max-restarts", max_restarts, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{name} {value!r}: expected a whole number, {least} or more")
    with _said_to_workers(), _requests_to_save_handed_on():
        return _watched(arguments, processes, max_restarts)


def _watched(arguments: Sequence[str], processes: int, max_restarts: int) -> int:
    """Start the processes and wait for their end."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    agent = _agent(("-m", "wholebatch", *arguments), processes, max_restarts)
    _quiet()
    rendezvous = agent.get_worker_group().spec.rdzv_handler
    try:
        failures = agent.run().failures
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    finally:
        rendezvous.shutdown()
    return _exit_code(failures[_cause(failures)].exitcode) if failures else 0


def _agent(command: Sequence[str], processes: int, max_restarts: int) -> LocalElasticAgent:
    """torch's elastic agent for this machine, which says more, and does not repeat what cannot succeed."""
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous import registry as rendezvous

    class Agent(LocalElasticAgent):
        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            started = super()._start_workers(worker_group)
            processes = self._pcontext
            assert processes is not None
            close = processes.close
            processes.close = lambda sent=None, timeout=_GRACE: close(sent, timeout)  # type: ignore[assignment,method-assign]
            return started

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result = super()._monitor_workers(worker_group)
            if result.is_failed():
                if not _worth_another_try(result.failures):
                    self._remaining_restarts = 0
                _say(result.failures, max_restarts, self._remaining_restarts)
            return result

    parameters = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        local_addr="localhost",
    )
    spec = WorkerSpec(
        role="default",
        local_world_size=processes,
        entrypoint=sys.executable,
        args=tuple(command),
        rdzv_handler=rendezvous.get_rendezvous_handler(parameters),
        max_restarts=max_restarts,
        monitor_interval=0.2,  # seconds
        local_addr="localhost",
    )
    patience = int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "30"))  # seconds, as torchrun
    return Agent(spec, DefaultLogsSpecs(), shutdown_timeout=patience)


def _quiet() -> None:
    """The process that failed says why, and :func:`_say` what a signal did; torch's loggers have a level each."""
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _cause(failures: dict[int, Any]) -> int:
    """The rank that failed first: the agent lists it before those that it stopped, which are no cause."""
    return next((rank for rank in failures if failures[rank].exitcode not in _ENDED_BY_AGENT), next(iter(failures)))


def _worth_another_try(failures: dict[int, Any]) -> bool:
    code = failures[_cause(failures)].exitcode if failures else 1
    return code != _MISTAKE and code not in _STOPPED


def _say(failures: dict[int, Any], max_restarts: int, left: int) -> None:
    """What a signal did to a process, which could not say it; and that all start anew."""
    rank = _cause(failures) if failures else None
    if rank is not None and failures[rank].exitcode < 0:
        number = -failures[rank].exitcode
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        hint = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
        print(f"wholebatch: process {rank} was ended by {name}{hint}", file=sys.stderr, flush=True)
    if left > 0:
        count = f"restart {max_restarts - left + 1} of {max_restarts}"
        print(f"wholebatch: all processes start anew, {count}", file=sys.stderr, flush=True)


def _exit_code(code: int) -> int:
    """A shell's code for a process that a signal ended."""
    return 128 - code if code < 0 else code


@contextmanager
def _said_to_workers() -> Iterator[None]:
    """Set what the workers' environment says.

    Their store is apart from the agent's: with a shared one, torch's default, most elastic restarts hang.
    """
    said = {SHARING: "1", LAUNCHER: str(os.getpid())}
    before = {name: os.environ.get(name) for name in said}
    os.environ.update(said)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _requests_to_save_handed_on() -> Iterator[None]:
    """Send SIGUSR1, which would end this process, on to those that train."""
    if not hasattr(signal, "SIGUSR1") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda number, frame: _tell_workers(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def _tell_workers(number: int) -> None:
    """Signal the children that have a rank, as far as the system tells who they are."""
    for listed in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for child in listed.read_text().split():
            with suppress(OSError):
                if b"\0LOCAL_RANK=" in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                    os.kill(int(child), number)
