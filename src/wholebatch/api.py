"""``train`` and ``evaluate``: put the parts together and hand over to the loops."""

from __future__ import annotations

import copy
import math
import sys
import warnings
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
from wholebatch import schedule as schedules
from wholebatch.checkpoint import Every, seconds_of
from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.errors import ConfigError, InputError, nearest
from wholebatch.core.processes import sharing_samples
from wholebatch.core.record import History, Observer, RunShape
from wholebatch.core.url import location
from wholebatch.data import BatchLoader, StreamLoader, as_loader
from wholebatch.data.select import selection, with_selection
from wholebatch.display import RunFolder, choose
from wholebatch.display.liveplot import LivePlot
from wholebatch.loop import Metrics
from wholebatch.loop.modes import begin_training, modes_given_back
from wholebatch.schedule.piecewise import end_of
from wholebatch.step import Step
from wholebatch.step.costs import Cost
from wholebatch.step.engine import HasStages
from wholebatch.step.losses import FunctionLoss, bind
from wholebatch.step.options import check_model, check_optimizer
from wholebatch.step.parts import split_of
from wholebatch.step.pinned import pinned
from wholebatch.step.recompute import recomputed

_BATCH_SIZE = 512
_PEEKED = 16  # samples that the micro-batch is found with
_SHORT = 0.7  # of the training; a schedule that ends before was hardly meant so


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
            into stages is whole again at the end; checkpoints in the run folder are always whole. A mapping with
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
    every, limit = _when(run_dir, checkpoint_every, time_limit, resume)
    _check_counts(epochs=epochs, log_every=log_every, digest_every=digest_every, accumulation_steps=accumulation_steps)
    if schedule_unit not in ("step", "epoch"):
        hint = nearest(str(schedule_unit), ("step", "epoch"))
        raise ConfigError(f"schedule_unit={schedule_unit!r}; expected 'step' or 'epoch'{hint}")
    check_model(model)
    processes = parallel_processes.init()
    loader = _loader(data, _sizes(batch_size, batch_size_unit), seed, shuffle=True, workers=workers)
    micro_batch = _micro_batch(micro_batch, accumulation_steps, loader.batch_size)
    where = device_for(device, model)
    model.to(where)
    _refuse_bits_of_parts(bitwise, parallel)
    engine = parallel_processes.engine(parallel, None if bitwise else model)  # "auto" is "flat" without a model
    if isinstance(engine, HasStages):
        loader.share(engine.samples)  # the stages of a pipeline have the same samples
    made = optimizer if isinstance(optimizer, Optimizer) or not callable(optimizer) else optimizer(model.parameters())
    parallel_processes.adopt(made, engine)
    attached = _attached(schedule, made)
    step = parallel_processes.step_for(parallel)(
        model,
        made,
        loss,
        micro_batch=micro_batch,
        micro_batch_tokens=micro_batch_tokens,
        micro_batch_cost=micro_batch_cost,
        clip_norm=clip_norm,
        precision=precision,
        seed=seed,
        schedule=None if schedule_unit == "epoch" else attached,
        engine=engine,
        bitwise=bitwise,
        threads=threads,
    )
    at_once = loader.batch_size if micro_batch == "auto" else int(micro_batch)
    at_once = min(processes.exchange(at_once or 0)) or None  # evaluation cuts alike everywhere; training need not
    at_once = at_once * processes.size if bitwise and at_once else at_once  # one micro-batch for each process
    tested = None if eval_data is None else _evaluation_loader(eval_data, at_once, workers)
    for one in [loader, *([] if tested is None else [tested])]:
        if step.processes is not processes and step.split:
            one.share(step.processes)
    own, named = copy.deepcopy(metrics), (inputs, targets)
    cut = int(micro_batch) if bitwise else None
    test = None if tested is None else _evaluation(model, tested, loss, own, where, *named, cut)
    if test is not None:
        test = _with_whole(step, test)
    kept_somewhere = run_dir is not None or resume is not False
    shared = kept_somewhere or processes.size > 1
    facts = loop.facts_of(step, loader, loss, schedule, schedule_unit) if shared else {}
    batch_rate = None if batch_lr_rule is None else loop.BatchRate(made, loader, batch_lr_rule)
    facts |= {} if step.mode is None else {"parallel": step.mode}
    facts |= {} if batch_rate is None else {"batch_lr_rule": batch_lr_rule}
    more = {"epochs": epochs, "run_dir": kept_somewhere, "resume": str(resume), "log_every": log_every}
    more |= {"digest_every": digest_every}
    if digest_every is not None and (step.split or isinstance(engine, HasStages) or step.workers is not None):
        raise ConfigError(f"digest_every={digest_every}: no process has the whole model's weights here; leave it out")
    asked = {
        **more,
        "parallel": str(parallel),
        "metrics": sorted(metrics) if isinstance(metrics, dict) else type(metrics).__name__,
    }
    loop.require_alike(processes, lambda: {**asked, **loop.facts_of_start(step, loader, tested), **facts})
    place = run_dir.path if isinstance(run_dir, RunFolder) else run_dir
    shape = _shape(loader, epochs, where, place, test is not None)
    _warn_of_short_schedule(schedule, shape, schedule_unit)
    shown = choose(sys.stdout) if display and processes.rank == 0 else Observer()  # one process prints and writes
    say = shown.message if display else None
    with (
        pinned(step.threads, precision) if bitwise else nullcontext(),
        sharing_samples(step.processes) if step.split else nullcontext(),
        closing(loader),
        closing(tested or loader),
        nullcontext() if recompute is None else recomputed(model, recompute),
        _selecting(loader, loss, inputs, targets),
        saved.opened(run_dir, resume, resume_allow, processes, say) as (kept, beginning, told),
    ):
        for plot in [one for one in observers if isinstance(one, LivePlot)]:
            plot.join(shown, kept)
        found = _fitted(step, loader, where)
        if isinstance(tested, BatchLoader) and tested is not eval_data and found is not None:
            tested.take_at_most(found)
        at_once = found if micro_batch == "auto" else int(micro_batch)
        history = loop.train(
            step,
            loader,
            replace(shape, micro_batch=at_once),
            micro_batch=at_once,
            device=where,
            metrics=Metrics(copy.deepcopy(metrics), _ignored(loss)),
            evaluate=test,
            epoch_schedule=attached if schedule_unit == "epoch" else None,
            log_every=log_every,
            digest_every=digest_every,
            observers=[shown, *([] if kept is None else [kept]), *observers],
            keeper=None if run_dir is None else saved.keeper(kept, processes, told, every=every, time_limit=limit),
            beginning=beginning,
            facts=facts,
            batch_rate=batch_rate,
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
    own = next((p.device for p in model.parameters()), torch.device("cpu"))
    where = own if device == "auto" else device_for(device, model)
    if not split_of(model):
        model.to(where)
    split = split_of(model)
    with (
        nullcontext() if split is None else sharing_samples(split.samples),
        closing(_evaluation_loader(data, batch_size, workers)) as loader,
    ):
        return _evaluation(model, loader, loss, metrics, where, inputs, targets)()


def _with_whole(step: Step, evaluate: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
    """``evaluate``, with the whole model on every process for that while."""

    def run() -> dict[str, float]:
        with step.whole():
            return evaluate()

    return run


def _when(
    run_dir: Any, checkpoint_every: str | None, time_limit: float | str | None, resume: bool | str | Path
) -> tuple[Every | None, float | None]:
    """How often to save, and the seconds there are."""
    every = None if checkpoint_every is None else Every(checkpoint_every)
    limit = None if time_limit is None else seconds_of(time_limit)
    asked = {
        "checkpoint_every": checkpoint_every,
        "time_limit": time_limit,
        "resume": resume if resume is True else None,
    }
    for name, value in asked.items():
        if value is not None and run_dir is None:
            raise ConfigError(f"{name}={value!r} needs a folder for the checkpoints; say run_dir=")
    return every, limit


def _evaluation(
    model: nn.Module,
    loader: BatchLoader | StreamLoader,
    loss: Any,
    metrics: Any,
    device: torch.device,
    inputs: Any,
    targets: Any,
    micro_batch: int | None = None,
) -> Callable[[], dict[str, float]]:
    call, kept = None if loss is None else bind(loss), Metrics(metrics, _ignored(loss))

    def run() -> dict[str, float]:
        with _selecting(loader, loss, inputs, targets):
            return loop.evaluate(model, loader, kept, call, device, micro_batch)

    return run


def _evaluation_loader(data: Any, batch_size: int | None, workers: int) -> BatchLoader | StreamLoader:
    size = None if getattr(data, "batch_size", None) else batch_size
    return _loader(data, size, 0, shuffle=False, workers=workers)


def _sizes(batch_size: Any, unit: str) -> int | BatchSizes | None:
    """The schedule of batch sizes, or the one there is."""
    scheduled = isinstance(batch_size, Mapping) or callable(batch_size)
    if not scheduled and unit != "epoch":
        raise ConfigError(f"batch_size_unit={unit!r} is about a schedule of batch sizes; batch_size is {batch_size!r}")
    return BatchSizes(batch_size, unit) if scheduled else batch_size


def _loader(
    data: Any, batch_size: int | BatchSizes | None, seed: int, shuffle: bool, workers: int
) -> BatchLoader | StreamLoader:
    own = batch_size is None and (isinstance(data, BatchLoader | StreamLoader) or getattr(data, "batch_size", None))
    size = batch_size if own or batch_size is not None else _BATCH_SIZE
    return as_loader(data, size, seed=seed, shuffle=shuffle, workers=workers)


@contextmanager
def _selecting(loader: BatchLoader | StreamLoader, loss: Any, inputs: Any, targets: Any) -> Iterator[None]:
    """Within the block the loader gives ``(inputs, *targets)`` where its batches are dicts and their keys are known."""
    before = loader.transform
    dataset = getattr(loader.dataset, "dataset", loader.dataset)  # a DataLoader holds its data set
    if inputs is not None or targets is not None or (before is None and not _reads_dicts(loss)):
        loader.transform = with_selection(before, selection(dataset, inputs, targets))
    try:
        yield
    finally:
        loader.transform = before


def _reads_dicts(loss: Any) -> bool:
    return loss is not None and isinstance(bind(loss), FunctionLoss)


def _micro_batch(micro_batch: int | str, accumulation_steps: int | None, batch_size: int | None) -> int | str:
    if accumulation_steps is None:
        return micro_batch
    if micro_batch != "auto":
        both = f"micro_batch={micro_batch!r} and accumulation_steps={accumulation_steps}"
        raise ConfigError(f"{both} say the same; give one of them")
    if batch_size is None:
        raise ConfigError("accumulation_steps needs a batch_size, which this loader does not have; give micro_batch")
    return math.ceil(batch_size / accumulation_steps)


def _fitted(step: Step, loader: BatchLoader | StreamLoader, device: torch.device) -> int | None:
    """The micro-batch that "auto" takes, found before the first window is asked for; None for all at once."""
    if not isinstance(loader, BatchLoader) or not step.size.automatic:
        return step.fit(None, 0)
    with modes_given_back(step.model):
        begin_training(step.model)
        batch, samples = loader.peek(_PEEKED, device, step.align)
        return step.fit(batch, samples)


def device_for(device: str | torch.device, model: nn.Module) -> torch.device:
    """Return the device that ``device`` means for ``model``.

    Raises:
        ConfigError: it cannot be used.
    """
    if device == "auto":
        found = next((p.device for p in model.parameters()), torch.device("cpu"))
        return torch.device("cuda") if found.type == "cpu" and torch.cuda.is_available() else found
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device={device!r} cannot be used: {reason}; try 'auto' or 'cpu'") from error
    return where


def _shape(
    loader: BatchLoader | StreamLoader, epochs: int, device: torch.device, run_dir: Any, evaluates: bool
) -> RunShape:
    by_epoch = None
    if isinstance(loader, BatchLoader) and not loader.sizes.fixed:
        by_epoch = tuple(loader.batches_in(epoch) for epoch in range(epochs))
    try:
        steps = None if by_epoch else len(loader)
    except TypeError:
        steps = None
    folder = None if run_dir is None else location(run_dir)
    return RunShape(
        epochs,
        steps,
        loader.samples,
        loader.batch_size or 0,
        str(device),
        run_dir=folder,
        evaluates=evaluates,
        steps_by_epoch=by_epoch,
    )


def _warn_of_short_schedule(schedule: Any, shape: RunShape, unit: str) -> None:
    """A schedule written for epochs ends long before training does where steps are counted."""
    whole = shape.epochs if unit == "epoch" else shape.steps
    end = _end_of(schedule)
    if whole is None or end >= _SHORT * whole:
        return
    repair = f"plan it for {whole} {unit}s"
    if unit == "step":
        repair += " or, if it counts epochs, say schedule_unit='epoch'"
    warnings.warn(
        f"the schedule ends after {end:g} {unit}s, but training goes on for {whole}; {repair}",
        UserWarning,
        stacklevel=4,  # train is wrapped once
    )


def _end_of(schedule: Any) -> float:
    """Where a schedule ends, infinity where it does not or only it knows."""
    if isinstance(schedule, schedules.Attached):
        schedule = schedule.schedule
    elif isinstance(schedule, LRScheduler):
        return float(getattr(schedule, "T_max", math.inf))
    return min(end_of(schedule), getattr(schedule, "max_update", math.inf))


def _attached(schedule: Any, optimizer: Any) -> LRScheduler | None:
    """The schedule as an ``LRScheduler`` of ``optimizer``."""
    if schedule is None:
        return None
    check_optimizer(optimizer)
    if not isinstance(schedule, LRScheduler):
        return schedules.attach(schedule, optimizer)
    if schedule.optimizer is not optimizer:
        raise InputError(
            f"the {type(schedule).__name__} belongs to another optimizer than the one given, so it would change "
            "nothing; make it of this optimizer, or give a function of progress, which is attached"
        )
    return schedule


def _ignored(loss: Any) -> int | None:
    value = getattr(loss, "ignore_index", None)
    return value if isinstance(value, int) else None


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r}; expected a whole number, 1 or more")


def _refuse_bits_of_parts(bitwise: bool, parallel: Any) -> None:
    """Refuse bitwise mode of a model that is split, before it is."""
    said = parallel if isinstance(parallel, Mapping) else {}
    for key in ("shard", "tensor", "pipeline", "workers"):
        if bitwise and said.get(key) not in (None, 1):
            raise ConfigError(
                f"bitwise=True with parallel: {key}={said[key]!r} is not available in this version; leave one out"
            )
