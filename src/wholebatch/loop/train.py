"""The training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core.processes import current, everyone
from wholebatch.core.record import History, Observer, RunShape
from wholebatch.data import ArrayDataset, BatchLoader, StreamLoader
from wholebatch.data.loader import AT_ONCE_BYTES
from wholebatch.data.window import Window
from wholebatch.loop.again import LastStep
from wholebatch.loop.batch_rate import BatchRate
from wholebatch.loop.dtypes import explain
from wholebatch.loop.keeper import Keeper
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.modes import begin_training, modes_given_back
from wholebatch.loop.recorder import Recorder
from wholebatch.loop.run import Beginning, Run
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
    digest_every: int | None = None,
    observers: Sequence[Observer] = (),
    keeper: Keeper | None = None,
    beginning: Beginning | None = None,
    facts: dict[str, Any] | None = None,
    batch_rate: BatchRate | None = None,
) -> History:
    """Run ``step`` over ``loader`` until ``shape.epochs`` epochs are done, from ``beginning``; return the history.

    Micro-batches go to the device one at a time. What an observer raises ends the training, as any error does, and
    all observers are told of the end. ``keeper`` saves the run, and stops it before its end.
    """
    processes = current()
    observers = [one for one in observers if everyone().rank == 0 or one.every_process]
    recorder = Recorder(step, metrics, observers, log_every, batch_rate, digest_every, shape.steps)
    run = Run(step, loader, recorder, metrics, epoch_schedule, facts or {})
    with ExitStack() as around:
        if keeper is not None:
            keeper.begin(run)
            around.enter_context(keeper)  # the outermost: the end of the observers is still inside
        if beginning is not None:
            run.go_on(beginning, processes)
        around.enter_context(modes_given_back(step.model))
        around.enter_context(_watching(step, metrics))
        if batch_rate is not None:
            around.enter_context(batch_rate)
        around.enter_context(_ending(observers, recorder.history))
        if keeper is not None:
            around.callback(keeper.close)
        for observer in observers:
            if isinstance(observer, LastStep):
                observer.goes_on_after(recorder.steps)
            observer.start(shape)
        _epochs(run, shape, _windows(run, micro_batch, device), evaluate, keeper)
    if step.noise.measured or keeper is not None:  # of a run that leaves curves it is said why they lack it
        for observer in observers:
            observer.message(step.noise.sentence())  # below what a live display leaves
    return recorder.history


def _epochs(
    run: Run,
    shape: RunShape,
    windows: Callable[[], Iterator[Window]],
    evaluate: Callable[[], dict[str, float]] | None,
    keeper: Keeper | None,
) -> None:
    """Train to the end, or until the keeper says stop."""
    recorder, make = run.recorder, _one_step(run.step, run.loader)
    while recorder.epoch < shape.epochs or recorder.within_epoch:
        begin_training(run.step.model)
        recorder.begin_epoch()
        for window in windows():
            recorder.note_rate()
            recorder.step(make(window))
            if keeper is not None and keeper.after_step(run, shape.steps_in(recorder.epoch)):
                return
        score = _end_epoch(run, evaluate)
        if keeper is not None and keeper.after_epoch(run, score, last=recorder.epoch >= shape.epochs):
            return


def _end_epoch(run: Run, evaluate: Callable[[], dict[str, float]] | None) -> float | None:
    """Record the epoch and evaluate; return the accuracy where there is one."""
    run.show()
    run.recorder.end_epoch()
    if run.epoch_schedule is not None:
        run.epoch_schedule.step()
    run.step.share_buffers()  # running statistics, which each process has of its own part
    if evaluate is None:
        return None
    values = evaluate()
    run.recorder.tested(values)
    return values.get("accuracy")


def _windows(run: Run, micro_batch: int | None, device: torch.device) -> Callable[[], Iterator[Window]]:
    """How the batches of an epoch are got, behind those that were made before a restart."""
    if isinstance(run.loader, StreamLoader):
        run.loader.compares = run.step.workers is None  # local steps are made so as not to meet at every step
    moved = run.loader.transform is not None or getattr(run.loader, "workers", False)
    place = device if moved else None  # the step itself moves what nothing transforms
    windows = partial(run.loader.windows, micro_batch, place, run.step.align, run.step.bitwise, run.step.workers)
    return lambda: islice(windows(), run.skipped_windows(), None)


def _one_step(step: Step, loader: BatchLoader | StreamLoader) -> Callable[[Window], StepReport]:
    """How a step is made of a window: piece by piece, or of the whole batch where that is hardly any memory."""
    largest = (loader.sizes.largest or loader.samples) if isinstance(loader, BatchLoader) else loader.batch_size or 0
    in_memory = isinstance(loader.dataset, ArrayDataset)
    at_once = in_memory and not step.bitwise and loader.dataset.bytes_per_sample * largest <= AT_ONCE_BYTES

    def make(window: Window) -> StepReport:
        if step.workers is not None:
            parts = {"edges": window.edges, "whole": window.whole_samples}
            batch: Any = MicroBatches(window, window.samples, **parts)  # type: ignore[arg-type]
        else:
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
