"""A run of a configuration: its folder, its training, the promise shown at its end, and evaluating it again."""

from __future__ import annotations

import io
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO

import torch

from wholebatch import api, config, loop
from wholebatch.config.build import Parts, build
from wholebatch.config.schema import Config
from wholebatch.core.errors import RunFolderError
from wholebatch.core.record import History
from wholebatch.data import BatchLoader
from wholebatch.display import RunFolder, choose, write_bytes

WEIGHTS = Path("checkpoints") / "weights.pt"


def train_recipe(settings: Config, *, stream: TextIO | None = None) -> History:
    """Train what ``settings`` say, in a run folder of its own, and print what came of it to ``stream``.

    Raises:
        InputError: the configuration, the data or the run folder cannot be used; nothing is left behind.
    """
    folder, display = _folder(settings), choose(stream or sys.stdout)
    kept = RunFolder(folder, texts={"config.yaml": config.to_yaml(settings)}, say=display.message)
    kept.check()
    parts = build(settings)
    loader = _loader(settings, parts)
    last = loop.LastStep(parts.model, parts.optimizer, settings.epochs * parts.steps_per_epoch)
    history = api.train(
        parts.model,
        loader,
        loss=parts.loss,
        optimizer=parts.optimizer,
        epochs=settings.epochs,
        schedule=parts.schedule,
        schedule_unit=settings.schedule_unit,
        micro_batch=settings.resolved_micro_batch(),
        bitwise=settings.bitwise,
        precision=settings.precision,
        clip_norm=settings.clip_norm,
        eval_data=BatchLoader(parts.test_data, settings.batch_size, shuffle=False, transform=parts.test_transform),
        seed=settings.seed,
        device=settings.device,
        log_every=settings.log_every,
        observers=[display, kept],
        display=False,
    )
    _save_weights(parts, folder)
    print(_promise(settings, parts, last), file=stream or sys.stdout)
    print(f"run: {folder}", file=stream or sys.stdout)
    return history


def evaluate_run(folder: Path, overrides: list[str]) -> dict[str, float]:
    """Return what the trained model of a run reaches on its test data.

    Raises:
        RunFolderError: the folder is no run, or holds no weights.
    """
    settings = config.load_run(folder, overrides)
    parts = build(settings)
    path = folder / WEIGHTS
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        parts.model.load_state_dict(weights)
    except FileNotFoundError:
        raise RunFolderError(f"{folder} holds no {WEIGHTS}; did its training end?") from None
    except Exception as error:
        raise RunFolderError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    test = BatchLoader(parts.test_data, settings.batch_size, shuffle=False, transform=parts.test_transform)
    return api.evaluate(parts.model, test, loss=parts.loss, device=settings.device)


def _loader(settings: Config, parts: Parts) -> BatchLoader:
    return BatchLoader(parts.train_data, settings.batch_size, seed=settings.seed, transform=parts.train_transform)


def _folder(settings: Config) -> Path:
    """The run's folder: as it was said, or a new one named after recipe and time."""
    if settings.run_dir is not None:
        return Path(settings.run_dir)
    name = f"{settings.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    tries = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 1000))
    return next(folder for folder in tries if not folder.exists())


def _save_weights(parts: Parts, folder: Path) -> None:
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in parts.model.state_dict().items()}, buffer)
    (folder / WEIGHTS).parent.mkdir(exist_ok=True)
    write_bytes(folder / WEIGHTS, buffer.getvalue())


def _promise(settings: Config, parts: Parts, last: loop.LastStep) -> str:
    """One line: the last step made once more with another micro-batch, on this machine."""
    size = settings.resolved_micro_batch()
    micro = min(settings.batch_size, len(parts.train_data)) if size == "auto" else int(size)
    other = max(1, round(micro * 0.4))
    loader = _loader(settings, parts)
    in_epoch = (parts.steps_per_epoch - 1) * settings.batch_size
    loader.load_state_dict({**loader.state_dict(), "epoch": settings.epochs - 1, "consumed": in_epoch})
    options = {"precision": settings.precision, "clip_norm": settings.clip_norm, "seed": settings.seed}
    difference = last.difference(loader, parts.loss, other, **options)
    if difference is None:
        return "the last step was skipped, so it could not be made once more"
    return (
        f"the last step made once more, in micro-batches of {other} instead of {micro}: "
        f"its gradient differs by {difference:.1e} of its norm"
    )
