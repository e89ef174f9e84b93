"""A run of a configuration: its folder, its training, the promise shown at its end, and evaluating it again."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

import torch

from wholebatch import api, config, loop, parallel
from wholebatch.config.build import Parts, build
from wholebatch.config.schema import Config
from wholebatch.core.errors import InputError, RunFolderError
from wholebatch.core.record import History, Observer
from wholebatch.data import BatchLoader
from wholebatch.display import RunFolder, choose, write_bytes

WEIGHTS = Path("checkpoints") / "weights.pt"


def train_recipe(settings: Config, *, stream: TextIO | None = None) -> History:
    """Train what ``settings`` say, in a run folder of its own, and say what came of it on ``stream``.

    Raises:
        InputError: the configuration, the data or the run folder cannot be used; nothing is left behind.
    """
    first = parallel.init().rank == 0
    display = choose(stream or sys.stdout) if first else Observer()
    with _folder(settings) if first else nullcontext(Path()) as folder:
        kept = RunFolder(folder, texts={"config.yaml": config.to_yaml(settings)}, say=display.message)
        if first:
            kept.check()
        parts = build(settings)
        last = loop.LastStep(parts.model)
        history = api.train(
            parts.model,
            _train_loader(settings, parts),
            loss=parts.loss,
            optimizer=parts.optimizer,
            epochs=settings.epochs,
            schedule=parts.schedule,
            schedule_unit=settings.schedule_unit,
            micro_batch=settings.resolved_micro_batch(),
            bitwise=settings.bitwise,
            precision=settings.precision,
            clip_norm=settings.clip_norm,
            eval_data=_test_loader(settings, parts),
            seed=settings.seed,
            device=settings.device,
            log_every=settings.log_every,
            observers=[display, kept, last],
            display=False,
        )
        if first:
            _save_weights(parts, folder)
    display.message(_promise(settings, parts, last))
    display.message(f"run: {folder}")
    return history


def evaluate_run(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Return what the trained model of a run reaches on its test data: what its history says, to the last bit.

    Raises:
        RunFolderError: the folder is no run, or its weights are missing, damaged, or of another model.
    """
    settings = config.load_run(folder, overrides)
    parts = build(settings)
    weights = _load_weights(folder)
    try:
        parts.model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split()[:40])
        raise RunFolderError(f"{folder / WEIGHTS} does not fit the model {settings.model.name}: {reason}") from error
    return api.evaluate(parts.model, _test_loader(settings, parts), loss=parts.loss, device=settings.device)


def _train_loader(settings: Config, parts: Parts) -> BatchLoader:
    return BatchLoader(parts.train_data, settings.batch_size, seed=settings.seed, transform=parts.train_transform)


def _test_loader(settings: Config, parts: Parts) -> BatchLoader:
    """The test data, as many at once as training has."""
    size = settings.resolved_micro_batch()
    at_once = settings.batch_size if size == "auto" else int(size)
    return BatchLoader(parts.test_data, at_once, shuffle=False, transform=parts.test_transform)


@contextmanager
def _folder(settings: Config) -> Iterator[Path]:
    """The run's folder: the one that was said, or a new one of its own, which is removed if it stays empty."""
    if settings.run_dir is not None:
        yield Path(settings.run_dir)
        return
    made_runs = not Path("runs").exists()
    folder = _new_folder(f"{settings.recipe}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        yield folder
    finally:
        for path in (folder, *([Path("runs")] if made_runs else [])):
            with suppress(OSError):  # it is not empty
                path.rmdir()


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


def _save_weights(parts: Parts, folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in parts.model.state_dict().items()}, buffer)
    try:
        (folder / WEIGHTS).parent.mkdir(exist_ok=True)
        write_bytes(folder / WEIGHTS, buffer.getvalue())
    except OSError as error:
        raise RunFolderError(f"{folder / WEIGHTS} cannot be written: {error.strerror or error}") from error


def _load_weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunFolderError(f"{folder} holds no {WEIGHTS}; did its training end?") from None
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # whatever a damaged file makes of the reader
        raise RunFolderError(
            f"{path} is damaged, or no file of weights ({type(error).__name__}); train again, or bring the file back"
        ) from error


def _promise(settings: Config, parts: Parts, last: loop.LastStep) -> str:
    """One line: the last step made once more with another micro-batch, on this machine."""
    before = (parts.steps_per_epoch - 1) * settings.batch_size
    samples = len(parts.train_data) - before
    size = settings.resolved_micro_batch()
    micro = samples if size == "auto" else min(int(size), samples)
    other = loop.other_micro_batch(samples, micro)
    if other is None:
        return "the last step had one sample, so it cannot be made once more in other micro-batches"
    loader = _train_loader(settings, parts)
    loader.load_state_dict({**loader.state_dict(), "epoch": settings.epochs - 1, "consumed": before})
    options = {"precision": settings.precision, "clip_norm": settings.clip_norm, "seed": settings.seed}
    try:
        difference = last.difference(loader, parts.loss, other, quiet=micro < samples, **options)
    except InputError as error:
        return f"the last step cannot be made once more in micro-batches of {other} instead of {micro}: {error}"
    if difference is None:
        return "the last step changed nothing, so there is nothing to compare"
    return (
        f"the last step made once more, in micro-batches of {other} instead of {micro}: "
        f"its gradient differs by {difference:.1e} of its norm"
    )
