"""A run of a configuration: its folder, its training, and the promise shown at its end."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from wholebatch import api, config, loop, parallel
from wholebatch.checkpoint import taken_by_earlier_world
from wholebatch.config.build import Parts, build
from wholebatch.config.schema import Config
from wholebatch.core import launched
from wholebatch.core.errors import DataError, InputError, RunFolderError
from wholebatch.core.record import History, Observer
from wholebatch.core.url import Url, location
from wholebatch.data import BatchLoader, Compose
from wholebatch.display import RunFolder, choose
from wholebatch.step.pinned import pinned
from wholebatch.trained.inputs import NAME, inputs_of
from wholebatch.trained.opening import evaluation_loader
from wholebatch.verifying.trace import Enough, StepTrace, Tracer


def train_recipe(
    settings: Config, *, resume: Path | Url | None = None, allow: Sequence[str] = (), stream: TextIO | None = None
) -> History:
    """Train what ``settings`` say, in a run folder of its own, and say what came of it on ``stream``.

    Args:
        settings: the configuration.
        resume: the folder of the run to go on with; ``settings`` are then that run's (:func:`config.load_run`).
        allow: names of what may be another than in that run although it changes the result.
        stream: standard output, if none.

    Raises:
        InputError: the configuration, the data or the run folder cannot be used; nothing is left behind.
        SystemExit: a signal came; the run is saved, and how to go on was said.
    """
    first = parallel.init().rank == 0
    display = choose(stream or sys.stdout) if first else Observer()
    with _folder(settings, resume) if first else nullcontext(resume or Path()) as folder:
        goes_on = resume is not None or (first and taken_by_earlier_world(folder))
        if first:
            RunFolder(folder, resume=goes_on).check()
        with pinned(settings.threads or 1, settings.precision) if settings.bitwise else nullcontext():
            parts = build(settings)
        settings = _as_built(settings, parts)
        texts = {"config.yaml": config.to_yaml(settings)}
        with suppress(DataError):  # no images; the model can be used with such data alone
            texts[NAME] = inputs_of(parts).to_json()
        kept = RunFolder(folder, texts=texts, resume=goes_on, say=display.message)
        split = max(settings.parallel.shard, settings.parallel.tensor, settings.parallel.pipeline) > 1
        last = None if split else loop.LastStep(parts.model)
        try:
            watched = last is not None and settings.parallel.workers is None
            history = _train(settings, parts, kept, allow, [display, *([last] if last is not None and watched else [])])
        except SystemExit:
            display.message(_how_to_go_on(folder))
            raise
    if not any(record["epoch"] >= settings.epochs for record in history.select("train", "epoch")):
        display.message(_how_to_go_on(folder))  # the time was up
        return history
    if settings.parallel.workers is not None:
        display.message(f"this result is that of {history.records[-1]['parallel']}, not of the whole batch's steps")
    else:
        display.message(_promise(settings, parts, last))
    display.message(f"run: {folder}")
    return history


def take_steps(settings: Config, steps: int) -> list[StepTrace]:
    """Take the first steps of a configuration, writing nothing; return their trace, as this process saw it."""
    with pinned(settings.threads or 1, settings.precision) if settings.bitwise else nullcontext():
        parts = build(settings)
    settings = replace(_as_built(settings, parts), checkpoint_every=None, time_limit=None)
    tracer = Tracer(parts.model, steps)
    with suppress(Enough):
        _train(settings, parts, None, (), [tracer])
    return tracer.steps


def _as_built(settings: Config, parts: Parts) -> Config:
    """The settings with what "auto" came to, so that a run that goes on elsewhere is the same."""
    normalized = replace(settings.data, normalize=parts.normalize)
    return replace(settings, data=normalized, precision=parts.precision, channels_last=parts.channels_last)


def _train(
    settings: Config, parts: Parts, kept: RunFolder | None, allow: Sequence[str], observers: Sequence[Observer]
) -> History:
    return api.train(
        parts.model,
        _train_loader(settings, parts),
        loss=parts.loss,
        optimizer=parts.optimizer,
        epochs=settings.epochs,
        batch_lr_rule=settings.batch_lr_rule,
        schedule=parts.schedule,
        schedule_unit=settings.schedule_unit,
        micro_batch=settings.resolved_micro_batch(),
        micro_batch_tokens=settings.micro_batch_tokens,
        bitwise=settings.bitwise,
        threads=settings.threads,
        precision=settings.precision,
        recompute=settings.recompute,
        clip_norm=settings.clip_norm,
        eval_data=evaluation_loader(settings, parts),
        seed=settings.seed,
        device=settings.device,
        parallel=parallel_of(settings),
        run_dir=kept,
        resume_allow=allow,
        checkpoint_every=settings.checkpoint_every,
        time_limit=settings.time_limit,
        log_every=settings.log_every,
        digest_every=settings.digest_every,
        observers=observers,
        display=False,
    )


def parallel_of(settings: Config) -> dict[str, Any]:
    """Return the settings' ``parallel=``, without what was not said."""
    return {name: value for name, value in asdict(settings.parallel).items() if value is not None}


def _how_to_go_on(folder: Path | Url) -> str:
    return f"saved; go on with: wholebatch train --resume {shlex.quote(str(folder))}"


def _train_loader(settings: Config, parts: Parts) -> BatchLoader:
    return BatchLoader(
        parts.train_data,
        settings.sizes(),
        seed=settings.seed,
        transform=parts.train_transform or Compose(),
        mix=parts.mix,
        workers=settings.workers,
    )


@contextmanager
def _folder(settings: Config, resume: Path | Url | None = None) -> Iterator[Path | Url]:
    """The run's folder: the one that was said, or a new one of its own, which is removed if it stays empty."""
    if resume is not None or settings.run_dir is not None:
        yield resume or location(str(settings.run_dir))
        return
    if (earlier := _of_earlier_world()) is not None:
        yield earlier
        return
    made_runs = not Path("runs").exists()
    folder = _new_folder(f"{settings.recipe}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        yield folder
    finally:
        for path in (folder, *([Path("runs")] if made_runs else [])):
            with suppress(OSError):  # it is not empty
                path.rmdir()


def _of_earlier_world() -> Path | None:
    """The folder that this launch made before its processes were started anew; the newest, if any."""
    if launched.launch() is None:
        return None
    found = [path for path in Path("runs").glob("*/") if taken_by_earlier_world(path)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def _new_folder(name: str) -> Path:
    """Make ``runs/<name>``, numbered where another run of the same second has it already."""
    number = 1
    while True:
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.is_dir():  # "runs" is a file
                raise _unwritable(folder, "runs is no folder") from None
            number += 1
        except OSError as error:
            raise _unwritable(folder, error.strerror or str(error)) from error
        else:
            return folder


def _unwritable(folder: Path, reason: str) -> RunFolderError:
    return RunFolderError(
        f"the run folder '{folder}' cannot be made: {reason}; choose a folder that can be written, with run_dir="
    )


def _promise(settings: Config, parts: Parts, last: loop.LastStep | None) -> str:
    """One line: the last step made once more with another micro-batch, on this machine."""
    if settings.bitwise:
        return (
            "bitwise: the same bits on any number of processes, with "
            f"micro_batch={settings.resolved_micro_batch()} and threads={settings.threads or 1}"
        )
    if last is None:
        return "the model is split over processes, so the last step is not made once more in one of them"
    if not last.kept:
        return "the last step was made before the run went on here, so it is not made once more"
    before, _ = settings.sizes().cuts(settings.epochs - 1, len(parts.train_data))[-1]
    samples = len(parts.train_data) - before
    micro = min(last.micro_batch or samples, samples)
    other: int | None = loop.other_micro_batch(samples, micro)
    if other is None:
        return "the last step had one sample, so it cannot be made once more in other micro-batches"
    how = f"in micro-batches of {other} instead of {micro}"
    options = {"precision": settings.precision, "clip_norm": settings.clip_norm, "seed": settings.seed}
    if settings.micro_batch_tokens is not None:
        tokens = max(1, round(0.4 * settings.micro_batch_tokens))
        options["micro_batch_tokens"], other = tokens, None
        how = f"in micro-batches of {tokens} tokens instead of {settings.micro_batch_tokens}"
    loader = _train_loader(settings, parts)
    loader.load_state_dict({**loader.state_dict(), "epoch": settings.epochs - 1, "consumed": before})
    try:
        difference = last.difference(loader, parts.loss, other, quiet=micro < samples, **options)
    except InputError as error:
        return f"the last step cannot be made once more {how}: {error}"
    if difference is None:
        return "the last step changed nothing, so there is nothing to compare"
    return f"the last step made once more, {how}: its gradient differs by {difference:.1e} of its norm"
