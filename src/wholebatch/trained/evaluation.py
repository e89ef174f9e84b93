"""What a run's model reaches on its test data: over all samples, by class, and what is taken for what."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from wholebatch import api, parallel
from wholebatch.core.errors import RunFolderError
from wholebatch.core.url import Url
from wholebatch.display.confusion import confusion_picture
from wholebatch.sums import Accuracy
from wholebatch.sums.tally import MOST_CLASSES
from wholebatch.trained.opening import device_of, evaluation_loader, opened_with_data
from wholebatch.trained.writing import put

TOP_5_FROM = 10  # classes; with fewer, five guesses are half of all answers

JSON_NAME, PICTURE_NAME = "evaluation.json", "confusion.png"


@dataclass(frozen=True)
class OfClass:
    """What became of one class: how many samples it has, which share of them was recognised, and the usual mistake."""

    name: str
    samples: int
    accuracy: float  # NaN without samples
    taken_for: str | None  # the class that it was most often taken for, None where it never was
    times: int


@dataclass(frozen=True)
class Evaluation:
    """The result of :func:`evaluate`.

    ``values`` are ``loss``, ``accuracy``, ``samples`` and, from ten classes on, ``top5``: the share of samples whose
    class is among the five likeliest.
    """

    run: str
    data: str
    overrides: tuple[str, ...]
    values: dict[str, float]
    balanced: float
    classes: tuple[OfClass, ...]
    confusion: Tensor | None  # int64 (C, C), [true, predicted]; None beyond 4,096 classes

    def to_json(self) -> str:
        """Return everything as one JSON object, a class and a row of the confusion matrix on each line."""
        classes = [
            {"class": one.name, "samples": one.samples, "accuracy": None if math.isnan(one.accuracy) else one.accuracy}
            for one in self.classes
        ]
        values: dict[str, Any] = {
            "run": self.run,
            "data": self.data,
            "overrides": self.overrides,
            **{name: int(value) if name == "samples" else _number(value) for name, value in self.values.items()},
            "balanced_accuracy": _number(self.balanced),
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
        lines.append(_listed("classes", classes))
        if self.confusion is not None:
            lines.append(_listed("confusion", self.confusion.tolist()))
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, folder: Path | Url) -> list[str]:
        """Write ``evaluation.json`` and, up to 4,096 classes, ``confusion.png`` into ``folder``; return their places.

        Raises:
            RunFolderError: they cannot be written.
        """
        files = {JSON_NAME: self.to_json().encode()}
        if self.confusion is not None:
            title = (
                f"{self.run}: accuracy {self.values['accuracy']:.4g} on {int(self.values['samples']):,} test samples"
            )
            files[PICTURE_NAME] = confusion_picture(
                self.confusion.numpy(), [one.name for one in self.classes], title=title
            )
        try:
            return [put(folder, name, content) for name, content in files.items()]
        except OSError as error:
            reason = error.strerror or str(error)
            raise RunFolderError(
                f"the evaluation cannot be written into {str(folder)!r}: {reason}; choose a folder with -o FOLDER"
            ) from error


def evaluate(folder: Path | Url, overrides: Sequence[str] = ()) -> Evaluation:
    """Evaluate the model of a run's newest checkpoint on the run's test data; all processes call it, if several.

    Of a run that came to its end loss and accuracy are what its history says, to the last bit.

    Raises:
        RunFolderError: the folder is no run, or its checkpoints are missing, damaged, or of another model.
    """
    parallel.init()  # before a loader is made, which gives each process its part
    settings, parts = opened_with_data(folder, overrides)
    # the classes of a text are its tokens
    names = parts.classes or tuple(str(token) for token in range(getattr(parts.train_data, "vocabulary", 0)))
    enough = len(names) >= TOP_5_FROM
    ignored = getattr(parts.loss, "ignore_index", None)
    accuracy = Accuracy(len(names), ignore_index=ignored, topk=(1, 5) if enough else (1,))
    found = api.evaluate(
        parts.model,
        evaluation_loader(settings, parts),
        metrics={"accuracy": accuracy},
        loss=parts.loss,
        device=device_of(settings),
    )
    whole = accuracy.all_reduce()
    samples = found.pop("samples")
    values = {**found, **({"top5": whole.topk[5]} if enough else {}), "samples": samples}
    confusion = whole.confusion if len(names) <= MOST_CLASSES else None
    return Evaluation(
        run=folder.name or str(folder),
        data=settings.data.name,
        overrides=tuple(overrides),
        values=values,
        balanced=whole.balanced,
        classes=_by_class(whole, confusion, names),
        confusion=confusion,
    )


def _by_class(accuracy: Accuracy, confusion: Tensor | None, names: Sequence[str]) -> tuple[OfClass, ...]:
    shares, samples = accuracy.per_class.tolist(), accuracy.per_class_count.tolist()
    if confusion is None:
        return tuple(OfClass(name, samples[i], shares[i], None, 0) for i, name in enumerate(names))
    mistakes = confusion.clone().fill_diagonal_(0)
    times, taken_for = (part.tolist() for part in mistakes.max(1))
    return tuple(
        OfClass(name, samples[i], shares[i], names[taken_for[i]] if times[i] else None, times[i])
        for i, name in enumerate(names)
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _listed(name: str, items: Sequence[Any]) -> str:
    return f"  {json.dumps(name)}: [\n" + ",\n".join(f"    {json.dumps(item)}" for item in items) + "\n  ]"
