"""The demonstration: digits of which few have a label, trained three ways from the same weights.

At once; by :class:`wholebatch.Step` in micro-batches; and by the usual loop, which divides each micro-batch's mean by
their number, though some hold more labels than others. Every step's gradient is compared with the exact one at the
same weights.
"""

from __future__ import annotations

import copy
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch import data, models
from wholebatch.core import keys
from wholebatch.core.errors import InputError
from wholebatch.step import Step

BATCH, MICRO_BATCH = 512, 8
LABELLED = 0.1  # share of the training images whose label is known
EPOCHS, LR = 20, 0.3  # plain SGD, so that the step is the gradient
KINDS = (".png", ".svg", ".pdf")
_SEED = 0

TakeStep = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]


@dataclass
class Curve:
    """One way to train: after every step the loss over all labelled training images, and its gradient's error."""

    name: str
    loss: list[float] = field(default_factory=list)
    error: list[float] = field(default_factory=list)
    accuracy: float = math.nan  # of the test part, at the end
    test_loss: float = math.nan


def demo(to: str | os.PathLike[str], *, epochs: int = EPOCHS) -> list[Curve]:
    """Train the three ways, print a table, write the picture to ``to``, and return the curves.

    Raises:
        InputError: the picture cannot be written there, or is of an unknown kind; said before anything is trained.
    """
    from wholebatch.verifying.demo_picture import draw

    path = _checked(Path(to))
    began = time.perf_counter()
    print(f"digits, {BATCH} images a step, one in {round(1 / LABELLED)} with a label; three times {epochs} epochs")
    curves = [_train(name, take, epochs) for name, take in WAYS.items()]
    print(table(curves))
    draw(curves, path)
    print(f"picture: {path} ({time.perf_counter() - began:.0f} s)")
    return curves


def table(curves: list[Curve]) -> str:
    """What each way came to, a line each."""
    width = max(len(curve.name) for curve in curves)
    lines = [f"{'':{width}}  training loss  test loss  test accuracy  error of a step (median)"]
    for curve in curves:
        error = statistics.median(curve.error)
        shown = f"{error:.1e}" if error < 0.01 else f"{error:.2f}"
        lines.append(
            f"{curve.name:{width}}  {curve.loss[-1]:13.3f}  {curve.test_loss:9.3f}  {100 * curve.accuracy:11.1f} %  "
            f"{shown:>24}"
        )
    return "\n".join(lines)


def _checked(path: Path) -> Path:
    if path.suffix not in KINDS:
        raise InputError(f"the picture {str(path)!r} must end in one of {', '.join(KINDS)}")
    if not path.parent.is_dir():
        raise InputError(f"the picture {str(path)!r} cannot be written: there is no folder {str(path.parent)!r}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"the picture {str(path)!r} cannot be written there; say another place with --to")
    return path


def at_once(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step of the whole batch, as torch does it where it fits."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def ours(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """One step of the whole batch in micro-batches."""
    Step(model, optimizer, nn.CrossEntropyLoss(), micro_batch=MICRO_BATCH)((images, labels))


def naive(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """The usual loop: every micro-batch's mean, divided by the number of micro-batches."""
    optimizer.zero_grad()
    pieces = list(zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True))
    for x, y in pieces:
        (F.cross_entropy(model(x), y) / len(pieces)).backward()
    optimizer.step()


WAYS: dict[str, TakeStep] = {
    "whole batch at once": at_once,
    f"wholebatch, micro-batches of {MICRO_BATCH}": ours,
    f"naive (loss / k), micro-batches of {MICRO_BATCH}": naive,
}


def _train(name: str, take: TakeStep, epochs: int) -> Curve:
    images, labels = _few_labels()
    test_images, test_labels = _tensors("test")
    model = models.build("mlp", hidden=(64,), seed=_SEED).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    loader = data.BatchLoader((images, labels), BATCH, seed=_SEED)
    curve = Curve(name)
    for _ in range(epochs):
        for x, y in loader:
            exact = _gradient(model, x, y)
            take(model, optimizer, x, y)
            found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            curve.error.append(float((found - exact).norm() / exact.norm()))
            with torch.no_grad():
                curve.loss.append(float(F.cross_entropy(model(images), labels)))
    with torch.no_grad():
        outputs = model(test_images)
    curve.test_loss = float(F.cross_entropy(outputs, test_labels))
    curve.accuracy = float((outputs.argmax(1) == test_labels).double().mean())
    return curve


def _gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    twin = copy.deepcopy(model)
    loss = F.cross_entropy(twin(images), labels)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(twin.parameters()))])


def _tensors(split: str) -> tuple[Tensor, Tensor]:
    dataset = data.digits(split)
    images, labels = next(iter(data.BatchLoader(dataset, len(dataset), shuffle=False)))
    return images.double(), labels


def _few_labels() -> tuple[Tensor, Tensor]:
    """The training images, and their labels, most of them -100, which the loss leaves out."""
    images, labels = _tensors("train")
    drawn = torch.rand(len(labels), generator=keys.generator(_SEED, "split"))
    return images, torch.where(drawn < LABELLED, labels, -100)
