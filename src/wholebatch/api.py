"""``train`` and ``evaluate``: put the parts together and hand over to the loops."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wholebatch import loop, saved
from wholebatch import parallel as parallel_processes
from wholebatch.core.device import device_for, device_of
from wholebatch.core.errors import ConfigError
from wholebatch.core.processes import Processes, sharing_samples
from wholebatch.core.record import History, Observer, RunShape
from wholebatch.core.url import location
from wholebatch.data import BatchLoader
from wholebatch.display import RunFolder, choose
from wholebatch.display.liveplot import LivePlot
from wholebatch.loop import Metrics
from wholebatch.loop.evaluate import evaluation
from wholebatch.loop.loaders import Loader, evaluation_loader, fitted, micro_batch_of, selecting, training_loader
from wholebatch.loop.lr_schedule import attached_to, check_unit, warn_of_short_schedule
from wholebatch.loop.metrics import ignored
from wholebatch.parallel.choose import refuse_bitwise
from wholebatch.step import Step
from wholebatch.step.alike import require_alike
from wholebatch.step.costs import Cost
from wholebatch.step.engine import Engine, HasStages
from wholebatch.step.options import check_model
from wholebatch.step.parts import split_of
from wholebatch.step.pinned import pinned
from wholebatch.step.recompute import recomputed


@parallel_processes.losses_named()
def train(
    model: nn.Module,
    data: Any,
    *,
    loss: Any,
    optimizer: Optimizer | Callable[..., Optimizer],
    batch_size: int | Mapping[int, int] | Callable[[int], int] | None = None,
    batch_size_unit: str = "epoch",
    batch_lr_rule: str | None = None,
    epochs: int = 10,
    schedule: Callable[[float], float] | LRScheduler | None = None,
    schedule_unit: str = "step",
    micro_batch: int | str = "auto",
    micro_batch_tokens: int | None = None,
    micro_batch_cost: Cost | None = None,
    accumulation_steps: int | None = None,
    bitwise: bool = False,
    precision: str = "fp32",
    recompute: str | None = None,
    clip_norm: float | None = None,
    eval_data: Any = None,
    inputs: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    metrics: Any = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    parallel: Any = None,
    run_dir: str | Path | RunFolder | None = None,
    resume: bool | str | Path = False,
    resume_allow: Sequence[str] = (),
    checkpoint_every: str | None = None,
    time_limit: float | str | None = None,
    log_every: int | None = None,
    digest_every: int | None = None,
    observers: Sequence[Observer] = (),
    display: bool = True,
    workers: int = 0,
    threads: int | None = None,
) -> History:
    """Train ``model`` and return the history.

    Under torchrun all processes call it, with the same arguments: they join by themselves, share every batch, and the
    result is that of one process. The first one prints, writes, and tells the observers.

    Args:
        model: any module; moved to ``device``. One in evaluation mode is trained in training mode, one in training
            mode keeps the layers that are not (a frozen batch norm); all modes are given back.
        data: ``(inputs, targets)`` as tensors or arrays (the inputs may be a dict or list of them), a ``Dataset``, an
            ``IterableDataset``, a ``DataLoader`` or a ``BatchLoader``.
        loss: what :class:`wholebatch.Step` takes.
        optimizer: an optimizer of the model's parameters, or a callable that makes one of them.
        batch_size: samples of one optimizer step: 512, or the loader's own. Or a schedule of them: a mapping from where
            a size begins, such as ``{0: 128, 10: 256}``, or a function of the progress.
        batch_size_unit: what that schedule counts, from 0: "epoch", or "samples" drawn since training began.
        batch_lr_rule: how the learning rate follows: None (not at all), "linear" or "sqrt" (in every step it is the
            rate that the optimizer or ``schedule`` says, scaled from the first batch size; :func:`scale_lr`).
        epochs: passes over the data.
        schedule: the learning rate as a function of progress, or an ``LRScheduler``.
        schedule_unit: what the schedule counts: "step" (applied optimizer steps) or "epoch".
        micro_batch: samples of one forward/backward; "auto" finds it from the memory there is and the throughput. Where
            memory runs out, the step is made again with a smaller one.
        micro_batch_tokens: what one forward/backward may cost, in place of ``micro_batch`` (:class:`Step`).
        micro_batch_cost: ``cost(batch)`` gives what each sample costs, in place of its tokens.
        accumulation_steps: in place of ``micro_batch``: how many micro-batches make a batch.
        precision: "fp32" (the model's own dtype), "tf32", "bf16" or "fp16" (autocast), or "bf16-true" (the model
            is made bfloat16, and stays so).
        recompute: names of layers, with ``*`` and commas ("layers.*"), that run again in the backward pass, so that
            their activations need no memory (:func:`wholebatch.recompute`); while training.
        clip_norm: the largest norm of the finished gradient.
        eval_data: evaluated after every epoch, as many samples at once as training has.
        inputs, targets: where batches are dicts: the keys of what the model takes and of what the loss is told
            (:class:`wholebatch.data.Select`). Data sets such as ImageNet say them by themselves; a loss that is a
            function ``f(model, batch)`` gets the dict as it is, unless they are said here.
        metrics: a metric or a dict of them (copies are fed); None counts accuracy where the targets are classes.
        seed: of order, augmentation and dropout.
        device: "auto" takes the GPU where there is one.
        run_dir: a folder, or the URL of one, for history, curves and checkpoints; without it nothing is written. While
            a run that has one trains, SIGTERM and SIGINT end it in an orderly way (see below), and SIGUSR1
            saves and goes on.
        resume: True goes on from the newest good checkpoint in ``run_dir``, and starts afresh where there is none; a
            path goes on from the newest one of another run's folder.
        resume_allow: names of what may be another than in the run that is resumed, although it changes the result:
            "batch_size", "seed", "optimizer", "schedule", … (the message that refuses names them).
        checkpoint_every: "500 steps", "10 min", "2 epochs"; None is after an epoch, at most once a minute. Always at
            the end. The last three are kept, and the one of the best accuracy on ``eval_data``.
        time_limit: seconds, or "2 h": in time before them the run saves and stops; ``train`` returns as usual.
        log_every: a record every so many steps, beside those of the epochs.
        digest_every: a record with a ``digest`` of the model's weights and buffers every so many steps, and at the last
            one: 32 hexadecimal digits, the same where all bits are the same. It reads one number per tensor.
        observers: further observers of the run.
        display: show progress on standard output: live on a terminal, a line per epoch elsewhere.
        workers: processes that read the samples of a ``Dataset`` ahead of time (:class:`wholebatch.data.BatchLoader`);
            they have ended when ``train`` returns. A loader has its own.
        parallel: how processes share the work, which changes speed and memory alone: "auto", "flat" (gradients are
            summed after backward), "ddp" (by DistributedDataParallel, during the last backward), or a mapping such as
            ``{"shard": 2}``, ``{"data": 2, "tensor": 2}`` or ``{"pipeline": 2, "schedule": "1f1b"}``
            (:func:`wholebatch.parallel.engine`). A model that is sharded or split by tensors stays so, one that was cut
            into stages is whole again at the end; checkpoints go on in any other layout. A mapping with
            ``workers`` sends less and changes the result: see "Less communication" in the documentation.
        bitwise: every bit of the weights, the losses and the counts is a function of code, data, seed, ``batch_size``
            and ``micro_batch``, which has to be a number, on any number of processes (:class:`Step`). Evaluation cuts
            by position, too. Torch runs on ``threads`` threads meanwhile, with deterministic kernels.
        threads: of torch in bitwise mode: 1, if None.

    Raises:
        InputError, InputTypeError: what was given cannot be used; the message says what can.
        CheckpointError: the run to resume is another one, or has no good checkpoint.
        NonFiniteError: a gradient is not finite.
        FencedError: another process has taken ``run_dir`` over.
        SystemExit: SIGTERM (code 143) or SIGINT (130) came; the step was finished and the run saved.

    >>> model = nn.Linear(3, 2)
    >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
    >>> history = train(model, (x, y), loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, batch_size=8, epochs=2,
    ...                 micro_batch=4, display=False)
    >>> history.last("train")["step"]
    6
    """
    every, limit = saved.when(run_dir, checkpoint_every, time_limit, resume)
    _check_counts(epochs=epochs, log_every=log_every, digest_every=digest_every, accumulation_steps=accumulation_steps)
    check_unit(schedule_unit)
    check_model(model)
    processes = parallel_processes.init()
    loader = training_loader(data, batch_size, batch_size_unit, seed, workers)
    micro_batch = micro_batch_of(micro_batch, accumulation_steps, loader.batch_size)
    where = device_for(device, model)
    model.to(where)
    cut = {"micro_batch": micro_batch, "micro_batch_tokens": micro_batch_tokens, "micro_batch_cost": micro_batch_cost}
    how = {"precision": precision, "clip_norm": clip_norm, "seed": seed, "bitwise": bitwise, "threads": threads}
    engine = _engine(parallel, model, loader, bitwise)
    step, by_epoch = _step(parallel, engine, model, optimizer, loss, schedule, schedule_unit, {**cut, **how})
    tested = _tested(eval_data, step, loader, workers, processes)
    test = None if tested is None else _test(step, tested, metrics, loss, where, inputs, targets)
    batch_rate = None if batch_lr_rule is None else loop.BatchRate(step.optimizer, loader, batch_lr_rule)
    _refuse_digests(digest_every, step, engine)
    records: dict[str, Any] = {"log_every": log_every, "digest_every": digest_every}
    asked = {"epochs": epochs, "run_dir": run_dir is not None or resume is not False, "resume": str(resume), **records}
    asked |= {"parallel": str(parallel), "metrics": _kind(metrics)}
    facts = _agreed(processes, asked, step, loader, tested, loss, schedule, schedule_unit, batch_lr_rule)
    shape = _shape(loader, epochs, where, run_dir, test is not None)
    warn_of_short_schedule(schedule, shape, schedule_unit)
    shown = choose(sys.stdout) if display and processes.rank == 0 else Observer()  # one process prints and writes
    say = shown.message if display else None
    with (
        _ready(step, loader, tested, recompute),
        selecting(loader, loss, inputs, targets),
        saved.opened(run_dir, resume, resume_allow, processes, say) as (kept, beginning, told),
    ):
        seen = _watching(shown, kept, observers)
        at_once = _at_once(step, loader, None if tested is eval_data else tested, where)
        history = loop.train(
            step,
            loader,
            replace(shape, micro_batch=at_once),
            micro_batch=at_once,
            device=where,
            metrics=Metrics(copy.deepcopy(metrics), ignored(loss)),
            evaluate=test,
            epoch_schedule=by_epoch,
            observers=seen,
            keeper=None if run_dir is None else saved.keeper(kept, processes, told, every=every, time_limit=limit),
            beginning=beginning,
            facts=facts,
            batch_rate=batch_rate,
            **records,
        )
        step.gather()
        return history


@parallel_processes.losses_named()
def evaluate(
    model: nn.Module,
    data: Any,
    *,
    metrics: Any = None,
    loss: Any = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    inputs: str | Sequence[str] | None = None,
    targets: str | Sequence[str] | None = None,
    workers: int = 0,
) -> dict[str, float]:
    """Evaluate ``model`` on ``data``, every sample once; modes of the layers are given back.

    Args:
        model: any module.
        data: what :func:`train` takes.
        metrics: a metric or a dict of them, reset first and readable afterwards; None counts accuracy where the
            targets are classes.
        loss: what :class:`wholebatch.Step` takes; its weighted mean is ``"loss"`` in the result (the sum over all
            data where the loss is a sum).
        batch_size: samples of one forward: 512, or the loader's own.
        device: "auto" is where the model is.
        inputs, targets: where batches are dicts: the keys of what the model takes and of what follows in the loss and
            the metrics; see :func:`train`.
        workers: see :func:`train`.

    Returns:
        ``loss`` where there is one, a number per metric, and ``samples``.

    Raises:
        DataError: the data set is empty, or gave another number of samples than its length.
        InputError: there is nothing to measure.

    >>> evaluate(nn.Identity(), (torch.eye(4), torch.tensor([0, 1, 2, 0])))
    {'accuracy': 0.75, 'samples': 4.0}
    """
    check_model(model, splits=True)
    parallel_processes.init()
    where = device_of(model) if device == "auto" else device_for(device, model)
    if not split_of(model):
        model.to(where)
    split = split_of(model)
    with (
        nullcontext() if split is None else sharing_samples(split.samples),
        closing(evaluation_loader(data, batch_size, workers)) as loader,
    ):
        return evaluation(model, loader, metrics, loss, where, inputs=inputs, targets=targets)()


def _engine(parallel: Any, model: nn.Module, loader: Loader, bitwise: bool) -> Engine:
    """What sums the gradients of the processes; ``loader`` learns which of them have the same samples."""
    if bitwise:
        refuse_bitwise(parallel)
    engine = parallel_processes.engine(parallel, None if bitwise else model)  # "auto" is "flat" without a model
    if isinstance(engine, HasStages):
        loader.share(engine.samples)  # the stages of a pipeline have the same samples
    return engine


def _step(
    parallel: Any,
    engine: Engine,
    model: nn.Module,
    optimizer: Any,
    loss: Any,
    schedule: Any,
    schedule_unit: str,
    options: Mapping[str, Any],
) -> tuple[Step, LRScheduler | None]:
    """The step, with its optimizer and schedule; and the schedule where it counts epochs, which no step does."""
    made = optimizer if isinstance(optimizer, Optimizer) or not callable(optimizer) else optimizer(model.parameters())
    parallel_processes.adopt(made, engine)
    attached = attached_to(made, schedule)
    by_step, by_epoch = (None, attached) if schedule_unit == "epoch" else (attached, None)
    make = parallel_processes.step_for(parallel)
    return make(model, made, loss, schedule=by_step, engine=engine, **options), by_epoch


def _tested(eval_data: Any, step: Step, loader: Loader, workers: int, processes: Processes) -> Loader | None:
    """The loader of what is evaluated during training; both loaders learn who shares the samples of a split model."""
    at_once = loader.batch_size if step.micro_batch == "auto" else int(step.micro_batch)
    at_once = min(processes.exchange(at_once or 0)) or None  # evaluation cuts alike everywhere; training need not
    at_once = at_once * processes.size if step.bitwise and at_once else at_once  # one micro-batch for each process
    tested = None if eval_data is None else evaluation_loader(eval_data, at_once, workers)
    if step.processes is not processes and step.split:
        for one in (loader, tested):
            if one is not None:
                one.share(step.processes)
    return tested


def _test(
    step: Step, tested: Loader, metrics: Any, loss: Any, device: torch.device, inputs: Any, targets: Any
) -> Callable[[], dict[str, float]]:
    """What evaluates during training, with metrics of its own, and the whole model on every process for that while."""
    cut = int(step.micro_batch) if step.bitwise else None
    own = copy.deepcopy(metrics)
    evaluated = evaluation(step.model, tested, own, loss, device, inputs=inputs, targets=targets, micro_batch=cut)

    def run() -> dict[str, float]:
        with step.whole():
            return evaluated()

    return run


def _agreed(
    processes: Processes, asked: Mapping[str, Any], step: Step, loader: Loader, tested: Loader | None, *settings: Any
) -> dict[str, Any]:
    """What the result depends on, and nothing where nobody asks; all processes were started alike, or all raise."""
    facts = loop.facts_of(step, loader, *settings) if asked["run_dir"] or processes.size > 1 else {}
    require_alike(processes, lambda: {**asked, **loop.facts_of_start(step, loader, tested), **facts})
    return facts


@contextmanager
def _ready(step: Step, loader: Loader, tested: Loader | None, recompute: str | None) -> Iterator[None]:
    """Within it everything is as training needs it; then no worker of a loader is left, and all is as it was."""
    with (
        pinned(step.threads, step.precision) if step.bitwise else nullcontext(),
        sharing_samples(step.processes) if step.split else nullcontext(),
        closing(loader),
        closing(tested or loader),
        nullcontext() if recompute is None else recomputed(step.model, recompute),
    ):
        yield


def _watching(shown: Observer, kept: RunFolder | None, observers: Sequence[Observer]) -> list[Observer]:
    """Everyone who watches; live plots are drawn with the display and written into the folder."""
    for plot in [one for one in observers if isinstance(one, LivePlot)]:
        plot.join(shown, kept)
    return [shown, *([] if kept is None else [kept]), *observers]


def _at_once(step: Step, loader: Loader, tested: Loader | None, device: torch.device) -> int | None:
    """The samples of a micro-batch, None for all; ``tested``, a loader made here, gives no more than fit."""
    found = fitted(step, loader, device)
    if isinstance(tested, BatchLoader) and found is not None:
        tested.take_at_most(found)
    return found if step.micro_batch == "auto" else int(step.micro_batch)


def _shape(loader: Loader, epochs: int, device: torch.device, run_dir: Any, evaluates: bool) -> RunShape:
    by_epoch = None
    if isinstance(loader, BatchLoader) and not loader.sizes.fixed:
        by_epoch = tuple(loader.batches_in(epoch) for epoch in range(epochs))
    try:
        steps = None if by_epoch else len(loader)
    except TypeError:
        steps = None
    place = run_dir.path if isinstance(run_dir, RunFolder) else run_dir
    return RunShape(
        epochs,
        steps,
        loader.samples,
        loader.batch_size or 0,
        str(device),
        run_dir=None if place is None else location(place),
        evaluates=evaluates,
        steps_by_epoch=by_epoch,
    )


def _kind(metrics: Any) -> Any:
    return sorted(metrics) if isinstance(metrics, dict) else type(metrics).__name__


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r}; expected a whole number, 1 or more")


def _refuse_digests(digest_every: int | None, step: Step, engine: Engine) -> None:
    """Refuse digests of a model that no process has whole, or that each worker has for itself."""
    if digest_every is not None and (step.split or isinstance(engine, HasStages) or step.workers is not None):
        raise ConfigError(f"digest_every={digest_every}: no process has the whole model's weights here; leave it out")
