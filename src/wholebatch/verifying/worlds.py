"""Worlds of real processes, one after the other: started anew, met through a file, ended by a time limit."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from wholebatch.core.errors import ConfigError, InputError, InputTypeError, PeerError, WorldError

_GRACE = 5.0  # seconds from SIGTERM to SIGKILL


def world(size: int, function: Callable[..., Any], *arguments: Any, limit: float) -> list[Any]:
    """Run ``function(*arguments)`` in ``size`` new processes that share a process group; return what each returns.

    Every process is started from nothing, as a person would start it, so that what Python draws for each (the order
    of its sets) is another one. None is left, whatever happens.

    Args:
        size: how many.
        function: of a module; it and ``arguments`` are sent to them.
        limit: seconds.

    Raises:
        InputError: a process raised one.
        WorldError: a process failed otherwise.
        ConfigError: ``limit`` is over.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="wholebatch-") as folder:
        started = [
            context.Process(target=_member, args=(rank, size, folder, limit, function, arguments))
            for rank in range(size)
        ]
        try:
            for process in started:
                process.start()
            _wait(started, Path(folder), limit)
            return [_result(Path(folder), rank, started[rank].exitcode) for rank in _mistakes_first(folder, size)]
        finally:
            _end(started)


def _wait(started: list[Any], folder: Path, limit: float) -> None:
    """Until all have ended, or one has failed, which the others would wait for."""
    end = time.monotonic() + limit
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):
            time.sleep(1.0)  # for the others to fail by themselves, and say why
            return
        if time.monotonic() > end:
            count = len(started)
            raise ConfigError(f"{count} processes had not ended after {limit:g} s; take fewer steps, with --steps")
        time.sleep(0.05)


def _end(started: list[Any]) -> None:
    alive = [process for process in started if process.pid is not None and process.is_alive()]
    for process in alive:
        process.terminate()
    for process in alive:
        process.join(_GRACE)
        if process.is_alive():
            process.kill()
            process.join()


def _mistakes_first(folder: str, size: int) -> range:
    """Raise the mistake that a process found, if any did; one that followed another says less."""
    errors = [pickle.loads(path.read_bytes()) for path in sorted(Path(folder).glob("error-*"))]
    for mistake, text in errors:
        if mistake:
            raise InputError(text)
    if errors:
        raise WorldError(errors[0][1])
    return range(size)


def _result(folder: Path, rank: int, code: int | None) -> Any:
    if code or not (folder / f"result-{rank}").exists():
        raise WorldError(f"process {rank} ended with code {code}")
    return pickle.loads((folder / f"result-{rank}").read_bytes())


def _member(rank: int, size: int, folder: str, limit: float, function: Callable[..., Any], arguments: Any) -> None:
    """One process, from its beginning to its end."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    place = Path(folder)
    try:
        warnings.simplefilter("ignore")  # said already, by the process that started these
        _join(rank, size, folder, limit)
        found = pickle.dumps(function(*arguments))
        (place / f"part-{rank}").write_bytes(found)
        (place / f"part-{rank}").rename(place / f"result-{rank}")
    except BaseException as error:
        mistake = isinstance(error, InputError | InputTypeError) and not isinstance(error, PeerError)
        text = str(error) if mistake else traceback.format_exc()
        (place / f"said-{rank}").write_bytes(pickle.dumps((mistake, text)))
        (place / f"said-{rank}").rename(place / f"error-{rank}")
        os._exit(1)  # gloo would wait for the others
    _leave()


def _join(rank: int, size: int, folder: str, limit: float) -> None:
    import torch
    from torch import distributed

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
        backend = "nccl" if size <= torch.cuda.device_count() else "gloo"
    if size > 1:
        store = distributed.FileStore(str(Path(folder) / "store"), size)
        distributed.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=limit)
        )


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
