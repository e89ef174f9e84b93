"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core.processes import current
from wholebatch.core.record import History, Observer, RunShape
from wholebatch.data import ArrayDataset, BatchLoader, StreamLoader
from wholebatch.data.loader import AT_ONCE_BYTES
from wholebatch.data.window import Window
from wholebatch.loop.dtypes import explain
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.modes import begin_training, modes_given_back
from wholebatch.loop.recorder import Recorder
from wholebatch.step import MicroBatches, Step, StepReport


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

    Micro-batches go to the device one at a time. What an observer raises ends the training, as any error does, and
    all observers are told of the end.
    """
    processes = current()
    observers = [one for one in observers if processes.rank == 0 or one.every_process]
    recorder = Recorder(step, metrics, observers, log_every)
    make = _one_step(step, loader)
    place = None if loader.transform is None else device  # the step itself moves what nothing transforms
    with modes_given_back(step.model), _watching(step, metrics), _ending(observers, recorder.history):
        for observer in observers:
            observer.start(shape)
        for _ in range(shape.epochs):
            begin_training(step.model)
            recorder.begin_epoch()
            for window in loader.windows(micro_batch, place):
                recorder.note_rate()
                recorder.step(make(window))
            recorder.end_epoch()
            if epoch_schedule is not None:
                epoch_schedule.step()
            for buffer in step.model.buffers():  # running statistics, which each process has of its own part
                processes.copy_from_first_(buffer)
            if evaluate is not None:
                recorder.tested(evaluate())
    return recorder.history


def _one_step(step: Step, loader: BatchLoader | StreamLoader) -> Callable[[Window], StepReport]:
    """How a step is made of a window: piece by piece, or of the whole batch where that is hardly any memory."""
    at_once = isinstance(loader.dataset, ArrayDataset) and (
        loader.dataset.bytes_per_sample * (loader.batch_size or 0) <= AT_ONCE_BYTES
    )

    def make(window: Window) -> StepReport:
        batch = window.whole() if at_once else MicroBatches(window, samples=window.samples)
        try:
            return step(batch, position=window.position)
        except RuntimeError as error:
            explain(error, step.model, next(iter(window)))
            raise

    return make


@contextmanager
def _watching(step: Step, metrics: Metrics) -> Iterator[None]:
    step.watch = metrics.add
    try:
        yield
    finally:
        step.watch = None


@contextmanager
def _ending(observers: Sequence[Observer], history: History) -> Iterator[None]:
    """Tell every observer of the end, the last one first, whatever the others raise."""
    with ExitStack() as stack:
        for observer in observers:
            stack.push(partial(_end, observer, history))
        yield


def _end(observer: Observer, history: History, kind: object, error: BaseException | None, trace: object) -> None:
    observer.end(history, error)
