"""A run's model for other programs: its weights as safetensors, and the whole of it by ``torch.export``.

A file is written under another name, loaded back, and its outputs are compared with the model's; then it is given its
name. So a file of that name is one that was tried.
"""

from __future__ import annotations

import io
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.config.build import make_model
from wholebatch.config.build_data import known_of_images
from wholebatch.core.errors import InputError, RunFolderError
from wholebatch.core.imports import module
from wholebatch.trained.inputs import NAME
from wholebatch.trained.opening import Opened
from wholebatch.trained.writing import put

WEIGHTS, PROGRAM = "model.safetensors", "model.pt2"

_SIZES = (8, 3)  # of the batches that are compared: the one that was traced, and another
_LARGEST = 1e-5  # difference of two outputs, relative to the largest output: float32 in another order of addition


@dataclass(frozen=True)
class Exported:
    """A file that was loaded back, and how far its outputs are from the model's, relative to the largest output."""

    place: str
    size: int  # bytes
    difference: float


def check() -> None:
    """Raise where a package is missing, before a run is opened.

    Raises:
        ConfigError: the extra ``export`` is not installed.
    """
    module("safetensors")


def export(run: Opened, folder: Path) -> Iterator[Exported]:
    """Write the model of a run into ``folder``, and yield every file once it was loaded back and compared.

    ``model.safetensors`` holds weights and buffers by their names in the state dict; ``model.pt2`` is a program that
    takes normalised images, float32 (N, C, H, W) with any N from 1, and needs nothing of this library; ``inputs.json``
    says how images are normalised and what the outputs are called.

    Raises:
        ConfigError: the extra ``export`` is not installed; nothing is written.
        InputError: the model cannot be exported, or a file gives other outputs; there is no file of that name then.
        RunFolderError: a file cannot be written.
    """
    check()
    safetensors = module("safetensors.torch")
    model = run.model.to("cpu").eval()
    batches = [_batch(run, size) for size in _SIZES]
    with _written(folder, WEIGHTS) as file:
        metadata = {"model": run.settings.model.name, "inputs": json.dumps(json.loads(run.inputs.to_json()))}
        mode = file.stat().st_mode
        safetensors.save_model(model, str(file), metadata=metadata)
        file.chmod(mode)  # it makes files that only their owner may read
        again = make_model(run.settings, known_of_images(len(run.inputs.classes), run.inputs.shape)).eval()
        _forget(again)
        safetensors.load_model(again, str(file))
        weights = _compared(folder, WEIGHTS, file, model, again, batches)
    yield weights
    with _written(folder, PROGRAM) as file:
        buffer = io.BytesIO()
        torch.export.save(_traced(run, model, batches[0]), buffer)
        file.write_bytes(buffer.getvalue())
        program = _compared(folder, PROGRAM, file, model, torch.export.load(file).module(), batches)
    yield program
    try:
        put(folder, NAME, run.inputs.to_json().encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _batch(run: Opened, size: int) -> Tensor:
    """Images of noise, normalised."""
    generator = torch.Generator().manual_seed(size)
    shape = (size, *run.inputs.shape)
    return run.inputs.normalized(torch.randint(256, shape, generator=generator, dtype=torch.uint8))


def _forget(model: nn.Module) -> None:
    """Give every weight and buffer another value, so that one that is not loaded is seen."""
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            value.fill_(0.5 if value.is_floating_point() else 1)


def _traced(run: Opened, model: nn.Module, batch: Tensor) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about its own code
            return torch.export.export(model, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # whatever torch cannot follow in somebody's model
        reason = " ".join(str(error).split()[:40])
        raise InputError(f"torch.export cannot follow the model {run.settings.model.name}: {reason}") from error


def _compared(
    folder: Path, name: str, file: Path, model: nn.Module, loaded: Callable[[Tensor], Tensor], batches: list[Tensor]
) -> Exported:
    """The largest difference over all batches.

    Raises:
        InputError: it is too large.
    """
    with torch.no_grad():
        difference = max((_difference(model(batch), loaded(batch)) for batch in batches), key=_nan_is_largest)
    if not difference <= _LARGEST:
        raise InputError(f"{name}, loaded back, gives outputs that differ by {difference:.1e}; it was not kept")
    return Exported(str(folder / name), file.stat().st_size, difference)


def _difference(expected: Tensor, got: Tensor) -> float:
    """Relative to the largest output; NaN where one of them has a NaN that the other has not."""
    if torch.allclose(expected, got, rtol=0, atol=0, equal_nan=True):
        return 0.0
    return float((expected - got).abs().max()) / (float(expected.abs().max()) or 1.0)


def _nan_is_largest(value: float) -> float:
    return math.inf if math.isnan(value) else value


@contextmanager
def _written(folder: Path, name: str) -> Iterator[Path]:
    """A place beside ``folder/name`` to write to, which takes that name when all went well and else is removed."""
    temporary = folder / f".{os.getpid()}.{name}"  # torch.export looks at the ending
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        yield temporary
        os.replace(temporary, folder / name)
    except (OSError, module("safetensors").SafetensorError) as error:
        raise _unwritable(folder, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _unwritable(folder: Path, error: Exception) -> RunFolderError:
    reason = getattr(error, "strerror", None) or str(error)
    return RunFolderError(f"cannot write into the folder {str(folder)!r}: {reason}; choose another with -o FOLDER")
