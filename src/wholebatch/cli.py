"""The command line: ``wholebatch train``, ``evaluate``, ``config``.

Exit codes: 0 done, or stopped in time by ``time_limit``; 1 a bug here (with its traceback), a NaN in the gradient, or
a reader who went away; 2 a mistake in what was asked, told in one line; 130 interrupted (Ctrl-C); 143 terminated.
With these two the run is saved.

Typer reads the words and gives back what to do; :func:`main` does it, so that an error of the training is never
taken for one of the command line. Torch, matplotlib and OmegaConf are imported when there is something to do.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wholebatch.core.errors import (
    ConfigError,
    FencedError,
    InputError,
    InputTypeError,
    NonFiniteError,
    PeerError,
    PromiseWarning,
    RunFolderError,
)
from wholebatch.version import __version__

if TYPE_CHECKING:
    from wholebatch.config import Config

Work = Callable[[], None]

BUG = 1
MISTAKE = 2
INTERRUPTED = 128 + 2  # what a shell reports of a program that SIGINT ended
TERMINATED = 128 + 15  # likewise SIGTERM

_RANK = "RANK"  # torchrun's name for a process's number

_WORDS = {"ignore_unknown_options": True}  # so that --lr 3 reaches us and can be answered

app = typer.Typer(
    name="wholebatch",
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(rich_markup_mode=None, invoke_without_command=True)
app.add_typer(config_app, name="config")

Recipe = Annotated[str | None, typer.Argument(metavar="RECIPE", help="The recipe to start from; digits if none.")]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings, such as batch_size=256 optimizer=adamw.")
]
Files = Annotated[
    list[Path] | None,
    typer.Option("-c", "--config", metavar="FILE", help="A YAML file of settings; may be repeated, the last one wins."),
]
Processes = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Share the work among N processes of this machine."),
]


Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder, from its newest checkpoint."),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="NAME", help="With --resume: what may differ although it changes the result."),
]


def _version(asked: bool) -> None:
    if asked:
        print(f"wholebatch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Ask for a batch size, get exactly that step, on whatever hardware you have."""
    _help_where_nothing_is_asked(context)


@config_app.callback()
def _config_options(context: typer.Context) -> None:
    """Show or check a configuration."""
    _help_where_nothing_is_asked(context)


def _help_where_nothing_is_asked(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(MISTAKE)


@app.command(context_settings=_WORDS, epilog="With nothing else, trains on digits; no data are downloaded.")
def train(
    recipe: Recipe = None,
    words: Words = None,
    files: Files = None,
    processes: Processes = None,
    resume: Resume = None,
    allow: Allow = None,
) -> Work:
    """Train a model, or go on with a run; the run's folder is printed at the end."""
    if resume is not None:
        return partial(_resume, resume, _join(recipe, words), files or [], allow or [], processes)
    if allow:
        raise ConfigError("--allow is about going on with a run; say --resume RUN as well")
    return partial(_train, _join(recipe, words), files or [], processes)


@app.command(context_settings=_WORDS)
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to change.")] = None,
) -> Work:
    """Evaluate the model of a run on its test data."""
    return partial(_evaluate, run, words or [])


@config_app.command("show", context_settings=_WORDS)
def config_show(recipe: Recipe = None, words: Words = None, files: Files = None) -> Work:
    """Print the whole configuration as YAML, with a line on each key; it can be given back with -c."""
    return partial(_config_show, _join(recipe, words), files or [])


@config_app.command("validate", context_settings=_WORDS)
def config_validate(recipe: Recipe = None, words: Words = None, files: Files = None) -> Work:
    """Build all that training would use (data, model, optimizer, schedule, loss), without training."""
    return partial(_config_validate, _join(recipe, words), files or [])


def _join(recipe: str | None, words: list[str] | None) -> list[str]:
    """All words in order; the first one may be a setting as well."""
    return [*([] if recipe is None else [recipe]), *(words or [])]


def _train(words: list[str], files: list[Path], processes: int | None) -> None:
    config = _load(words, files)
    _launch(config, ["train", *words, *(word for file in files for word in ("-c", str(file)))], processes)
    from wholebatch import runs

    runs.train_recipe(config)


def _resume(run: Path, words: list[str], files: list[Path], allow: list[str], processes: int | None) -> None:
    overrides = _settings(words)
    if files or any("=" not in word for word in overrides):
        raise ConfigError(f"--resume takes the configuration of {str(run)!r}; change it with key=value alone")
    from wholebatch.config import load_run

    config = load_run(run, overrides)
    given = ["--resume", str(run), *(word for name in allow for word in ("--allow", name))]
    _launch(config, ["train", *words, *given], processes)
    from wholebatch import runs

    runs.train_recipe(config, resume=run, allow=allow)


def _launch(config: Config, arguments: list[str], processes: int | None) -> None:
    """Where several processes are asked for, start them and end with their exit code."""
    if processes is None or processes == 1 or _RANK in os.environ:
        return
    from wholebatch.config.build import check_names
    from wholebatch.parallel import launch

    check_names(config)
    sys.exit(launch(arguments, processes))


def _evaluate(run: Path, words: list[str]) -> None:
    if "=" in str(run) and not run.exists():
        raise RunFolderError(f"evaluate takes the folder of a run first, got {str(run)!r}")
    overrides = _settings(words)
    from wholebatch import runs

    for name, value in runs.evaluate_run(run, overrides).items():
        print(f"{name} {value:.6g}")


def _config_show(words: list[str], files: list[Path]) -> None:
    config = _load(words, files)
    from wholebatch.config import to_yaml
    from wholebatch.config.build import check_names

    check_names(config)
    print(to_yaml(config, comments=True), end="")


def _config_validate(words: list[str], files: list[Path]) -> None:
    config = _load(words, files)
    from wholebatch.config.build import build

    parts = build(config)
    parameters = sum(parameter.numel() for parameter in parts.model.parameters())
    print(
        f"valid: {config.model.name} with {parameters:,} parameters on {len(parts.train_data):,} samples of "
        f"{config.data.name}, {config.epochs} epochs of {parts.steps_per_epoch} steps"
    )


def _load(words: list[str], files: list[Path]) -> Config:
    from wholebatch.config import load, recipe_names
    from wholebatch.config.schema import dotted_keys

    words = list(words)
    recipe = words.pop(0) if words and "=" not in words[0] and not words[0].startswith("-") else None
    if recipe is not None and recipe not in recipe_names():
        key = recipe.replace("-", "_")
        if key in dotted_keys():
            value = words[0] if words and "=" not in words[0] else "value"
            raise ConfigError(f"{recipe!r} is a setting, not a recipe; write {key}={value}")
    return load(recipe, files=files, overrides=_settings(words))


def _settings(words: Sequence[str]) -> list[str]:
    """The words that are ``key=value``; an option that does not exist is answered with how to write it.

    >>> _settings(["lr=3", "epochs=1"])
    ['lr=3', 'epochs=1']
    """
    for place, word in enumerate(words):
        if re.match(r"--?[A-Za-z]", word):
            option, equals, value = word.partition("=")
            if not equals:
                after = words[place + 1] if place + 1 < len(words) else "--"
                value = "value" if after.startswith("--") or "=" in after else after
            raise ConfigError(f"there is no option {option}{_how_to_write(option, value)}")
    return list(words)


def _how_to_write(option: str, value: str) -> str:
    """The repair for ``--key value``: the key of this name, or the nearest one."""
    from wholebatch.config.schema import dotted_keys
    from wholebatch.core.errors import nearest

    key, known = option.lstrip("-").replace("-", "_"), dotted_keys()
    if key not in known:
        leaf = [name for name in known if name.rpartition(".")[2] == key]
        hint = nearest(key, known).rpartition("mean ")[2].strip("'?")
        key = leaf[0] if leaf else hint
    return f"; write {key}={value}" if key else "; settings are written key=value"


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
    except PeerError:
        return MISTAKE  # the process that failed says why
    except (InputError, InputTypeError) as error:
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
        return typer.main.get_command(app).main(words, prog_name="wholebatch", standalone_mode=False)
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
    process = (
        f"process {os.environ[_RANK]}: " if os.environ.get("WORLD_SIZE", "1") != "1" and _RANK in os.environ else ""
    )
    print(f"wholebatch: {process}{' '.join(message.split())}", file=sys.stderr)
    return code


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM raises ``SystemExit`` here, so that files are closed and the terminal is given back."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warnings_of_ours_in_one_line() -> None:
    """Print what this library warns of as the one line it is, without the place in the source."""
    usual, ours = warnings.showwarning, Path(__file__).parent

    def show(message: Warning | str, category: type[Warning], filename: str, *place: Any, **rest: Any) -> None:
        if issubclass(category, PromiseWarning) or (category is UserWarning and Path(filename).is_relative_to(ours)):
            print(f"wholebatch: {' '.join(str(message).split())}", file=sys.stderr)
        else:
            usual(message, category, filename, *place, **rest)

    warnings.showwarning = show
