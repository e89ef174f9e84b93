"""What a run says about itself: records, the history of them, and who watches.

A record is a flat dict: ``step``, ``epoch``, ``samples``, ``kind`` ("step" or "epoch"), ``split``
("train" or "test"), then values such as ``loss``, ``accuracy``, ``lr``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wholebatch.core.errors import InputError
from wholebatch.core.url import Url

Record = dict[str, Any]


@dataclass(frozen=True)
class RunShape:
    """What is known when a run starts; ``None`` where only running tells."""

    epochs: int
    steps_per_epoch: int | None
    samples_per_epoch: int | None
    batch_size: int
    device: str
    title: str = ""
    run_dir: Path | Url | None = None
    evaluates: bool = False  # every epoch's "train" record is followed by a "test" record
    steps_by_epoch: tuple[int, ...] | None = None  # where epochs differ, and ``steps_per_epoch`` is None
    micro_batch: int | None = None  # the largest, in samples; all of a batch at once, or cut by tokens, where None

    @property
    def steps(self) -> int | None:
        """Steps of the whole run."""
        if self.steps_by_epoch is not None:
            return sum(self.steps_by_epoch)
        return None if self.steps_per_epoch is None else self.epochs * self.steps_per_epoch

    def steps_in(self, epoch: int) -> int | None:
        """Steps of an epoch, counted from 1."""
        if self.steps_by_epoch is not None and 0 < epoch <= len(self.steps_by_epoch):
            return self.steps_by_epoch[epoch - 1]
        return self.steps_per_epoch


@dataclass(frozen=True)
class Progress:
    """Where a run is after a step. ``read()`` fetches the running values from the device; call it rarely.

    ``read()`` gives some of ``loss``, ``accuracy`` (means since the epoch began) and ``lr``.
    """

    epoch: int  # from 1
    step: int  # updates since the run began, from 1
    step_in_epoch: int  # from 1
    samples: int  # samples since the run began
    read: Callable[[], dict[str, float]]


class Observer:
    """Someone who watches a run; every method does nothing until it is overridden.

    With several processes the first one's observers are told, and those with ``every_process`` in each process.
    """

    every_process = False

    def start(self, run: RunShape) -> None:
        """Training begins."""

    def step(self, progress: Progress) -> None:
        """An optimizer step was made."""

    def record(self, record: Record) -> None:
        """A record is finished; its values are plain numbers."""

    def message(self, text: str) -> None:
        """Something worth one line was found."""

    def end(self, history: History, error: BaseException | None) -> None:
        """Training ended, by ``error`` or, where that is None, as planned. Called exactly once."""


@dataclass
class History:
    """The records of a run, oldest first.

    >>> history = History([{"kind": "epoch", "split": "test", "step": 3, "accuracy": 0.5}])
    >>> history.last("test")["accuracy"]
    0.5
    """

    records: list[Record] = field(default_factory=list)

    def select(self, split: str | None = None, kind: str | None = None) -> list[Record]:
        """Return the records of one split ("train" or "test") and one kind ("step" or "epoch"); None is any."""
        return [
            record
            for record in self.records
            if (split is None or record["split"] == split) and (kind is None or record["kind"] == kind)
        ]

    def last(self, split: str, kind: str = "epoch") -> Record:
        """Return the newest record of ``split`` and ``kind``.

        Raises:
            InputError: there is none.
        """
        found = self.select(split, kind)
        if not found:
            have = sorted({(record["split"], record["kind"]) for record in self.records})
            raise InputError(f"the history has no record of split {split!r} and kind {kind!r}; it has {have}")
        return found[-1]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)
