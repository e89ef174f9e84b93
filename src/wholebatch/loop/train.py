"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core.record import History, Observer, RunShape
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.recorder import Recorder
from wholebatch.step import MicroBatches, Step


def train(
    step: Step,
    loader: BatchLoader | StreamLoader,
    shape: RunShape,
    *,
    micro_batch: int | None,
    device: torch.device,
    metrics: Metrics,
    evaluate: Callable[[], dict[str, float]] | None = None,
    epoch_schedule: LRScheduler | None = None,
    log_every: int | None = None,
    observers: Sequence[Observer] = (),
) -> History:
    """Run ``shape.epochs`` epochs of ``step`` over ``loader``; return the history.

    Micro-batches go to ``device`` one at a time. Observers are told of the end also when an error ends it.
    """
    recorder = Recorder(step, metrics, observers, log_every)
    step.watch = metrics.add
    error: BaseException | None = None
    try:
        for observer in observers:
            observer.start(shape)
        for _ in range(shape.epochs):
            recorder.begin_epoch()
            step.model.train()
            for window in loader.windows(micro_batch, device):
                recorder.note_rate()
                recorder.step(step(MicroBatches(window, samples=window.samples), position=window.position))
            recorder.end_epoch()
            if epoch_schedule is not None:
                epoch_schedule.step()
            if evaluate is not None:
                recorder.tested(evaluate())
    except BaseException as caught:
        error = caught
        raise
    finally:
        step.watch = None
        for observer in observers:
            observer.end(recorder.history, error)
    return recorder.history
