"""The command line: ``wholebatch train``, ``evaluate``, ``config``, ``data``.

Exit codes: 0 done, or stopped in time by ``time_limit``; 1 a bug here (with its traceback), a NaN in the gradient,
another process that failed, a reader who went away, ``data check`` found something, or ``predict`` could not read a
file; 2 a mistake in what was asked, told in one line; 130 interrupted (Ctrl-C); 143 terminated. With these two the
run is saved.

Typer reads the words and gives back what to do; :func:`main` does it, so that an error of the training is never
taken for one of the command line. Torch, matplotlib and OmegaConf are imported when there is something to do.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from wholebatch.cli.app import MISTAKE, make
from wholebatch.core.errors import (
    FencedError,
    InputError,
    InputTypeError,
    LostError,
    NonFiniteError,
    PeerError,
    PromiseWarning,
)

BUG = 1
INTERRUPTED = 128 + 2  # what a shell reports of a program that SIGINT ended
TERMINATED = 128 + 15  # likewise SIGTERM

_RANK = "RANK"  # torchrun's name for a process's number
_SECOND = 2.0  # seconds; by then a launcher has seen which process failed first


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; ``arguments`` default to those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _termination(), warnings.catch_warnings():
        _show_warnings_of_ours_in_one_line()
        try:
            code = _run(words)
            _flush()
        except BrokenPipeError:
            # Whoever read our output went away. Its descriptor now leads nowhere, so that the
            # interpreter's own flush at exit finds no broken pipe either.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            code = BUG
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Do what ``words`` ask for and return the exit code."""
    try:
        outcome = _parse(words)
        if callable(outcome):
            outcome()
            return 0
        return int(outcome or 0)  # --help and --version are done by now
    except PeerError as error:
        return _follow(error)
    except (InputError, InputTypeError) as error:
        if os.environ.get(_RANK, "0") != "0":
            time.sleep(_SECOND)  # mostly all have found it: the first one says it, and the launcher stops the others
        return _fail(str(error), MISTAKE)
    except (NonFiniteError, FencedError) as error:
        return _fail(str(error), BUG)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except SystemExit as stop:
        if stop.code in (TERMINATED, INTERRUPTED):
            return _fail("terminated" if stop.code == TERMINATED else "interrupted", int(stop.code))
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise
        traceback.print_exc()
        if _number():
            _fail(f"{type(error).__name__}: {error}", BUG)  # which process it was
        return BUG


def _follow(error: PeerError) -> int:
    """After another process failed: it says why, and is given the time to be the first that ends."""
    if isinstance(error, LostError):
        _fail(str(error), BUG)
    time.sleep(_SECOND)
    return BUG


def _reader_is_gone() -> bool:
    """Whether it is the output of this process that broke, and not a pipe of the training."""
    if not hasattr(select, "poll"):  # Windows
        return True
    outputs = select.poll()
    for descriptor in (1, 2):
        outputs.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in outputs.poll(0))


def _flush() -> None:
    if sys.stdout is not None:  # closed by whoever started us
        sys.stdout.flush()


def _parse(words: list[str]) -> Any:
    """What typer makes of ``words``: the work to be done, or the exit code of --help and --version."""
    try:
        return typer.main.get_command(make()).main(words, prog_name="wholebatch", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # every mistake that typer itself finds has it
            raise
        context = getattr(error, "ctx", None)
        where = f" (see {context.command_path} --help)" if context is not None else ""
        raise InputError(f"{error.format_message()}{where}") from None


def _fail(message: str, code: int) -> int:
    """Print one line to stderr, with the process's number where there are several, and return ``code``."""
    if code in (TERMINATED, INTERRUPTED) and "TORCHELASTIC_RUN_ID" in os.environ:
        return code  # the launcher says so, or stopped this one since another failed, which has said why
    print(f"wholebatch: {_number()}{' '.join(message.split())}", file=sys.stderr)
    return code


def _number() -> str:
    """Which process this is, where there are several."""
    return f"process {os.environ[_RANK]}: " if os.environ.get("WORLD_SIZE", "1") != "1" and _RANK in os.environ else ""


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM raises ``SystemExit`` here, so that files are closed and the terminal is given back.

    SIGUSR1, a request to save, which would end a process that does not train yet, is let pass.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    handlers: dict[int, Any] = {signal.SIGTERM: stop}
    usual = getattr(signal, "SIGUSR1", None)  # Windows has none
    if usual is not None and signal.getsignal(usual) is signal.SIG_DFL:
        handlers[usual] = lambda number, frame: None
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_warnings_of_ours_in_one_line() -> None:
    """Print what this library warns of as the one line it is, without the place in the source."""
    usual, ours = warnings.showwarning, Path(__file__).parents[1]

    def show(message: Warning | str, category: type[Warning], filename: str, *place: Any, **rest: Any) -> None:
        if issubclass(category, PromiseWarning) or (category is UserWarning and Path(filename).is_relative_to(ours)):
            print(f"wholebatch: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            usual(message, category, filename, *place, **rest)

    warnings.showwarning = show
