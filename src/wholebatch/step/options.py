"""What a step's options may be."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Container
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from wholebatch.core.errors import ConfigError, InputError, InputTypeError
from wholebatch.schedule import attach
from wholebatch.step.engine import Engine
from wholebatch.step.parts import is_split
from wholebatch.step.precision import check_precision, is_half

NONFINITE = ("raise", "skip", "allow")


def scheduler_of(schedule: Any, optimizer: Optimizer) -> LRScheduler | None:
    """Return the schedule as an ``LRScheduler`` of ``optimizer``; a function of progress is attached.

    Raises:
        InputTypeError: it is neither, or needs a metric.
        InputError: it belongs to another optimizer.
    """
    if isinstance(schedule, ReduceLROnPlateau):
        raise InputTypeError(
            "ReduceLROnPlateau has to be told a metric, which a step does not know; call its step(metric) yourself "
            "after each evaluation, and leave schedule=None"
        )
    if isinstance(schedule, LRScheduler) and getattr(schedule, "optimizer", optimizer) is not optimizer:
        raise InputError(f"the {type(schedule).__name__} is attached to another optimizer than the step's")
    if schedule is None or isinstance(schedule, LRScheduler):
        return schedule
    if not callable(schedule):
        raise InputTypeError(
            f"schedule is a {type(schedule).__name__}; give a function of the step number or a torch LRScheduler"
        )
    return attach(schedule, optimizer)


def check_options(micro_batch: Any, precision: str, dropout: str, seed: Any) -> None:
    """Refuse values that mean nothing.

    Raises:
        ConfigError: the message names the option, its value, and what was expected.
    """
    whole = isinstance(micro_batch, int) and not isinstance(micro_batch, bool) and micro_batch >= 1
    if micro_batch != "auto" and not whole:
        raise ConfigError(f"micro_batch={micro_batch!r}; expected a number of samples, 1 or more, or 'auto'")
    check_precision(precision)
    if dropout not in ("keyed", "native"):
        raise ConfigError(f"dropout={dropout!r}; expected 'keyed' or 'native'")
    if not isinstance(seed, int):
        raise ConfigError(f"seed={seed!r}; expected an int")


def check_tokens(micro_batch: Any, tokens: Any, cost: Any) -> None:
    """Refuse a size in tokens beside one in samples, or none where there is a cost.

    Raises:
        ConfigError: the message names the options and their values.
    """
    if tokens is None and cost is not None:
        raise ConfigError("micro_batch_cost= says what a sample costs; say what a micro-batch may: micro_batch_tokens=")
    if tokens is None:
        return
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ConfigError(f"micro_batch_tokens={tokens!r}; expected a number of tokens, 1 or more")
    if micro_batch != "auto":
        raise ConfigError(f"micro_batch={micro_batch} and micro_batch_tokens={tokens} say the same; give one of them")
    if cost is not None and not callable(cost):
        raise ConfigError(f"micro_batch_cost={cost!r:.40}; expected a function of a batch that gives a number a sample")


def check_split(model: nn.Module, engine: Engine | None, precision: str) -> None:
    """Refuse what a model of which every process holds parts cannot be trained with.

    Raises:
        InputError: the model is split, and the engine is not the one that split it.
        ConfigError: parameters of half precision.
    """
    if engine is None or engine.world is None:
        if is_split(model):
            raise InputError(
                "the model is split over processes; give the engine that split it: Step(…, engine=engine), where "
                "engine = wholebatch.parallel.engine({'shard': 2}, model)"
            )
        return
    if precision == "bf16-true" or any(is_half(parameter) for parameter in model.parameters()):
        what = f"precision={precision!r}" if precision == "bf16-true" else "a parameter of half precision"
        raise ConfigError(f"{what} is not available in this version with a split model; use 'bf16' (autocast)")


def check_model(model: Any, splits: bool = False) -> None:
    """Refuse what is no module, and modules whose engine averages gradients itself, unless ours ``splits`` it."""
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    names = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    for wrapper in ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"):
        if wrapper in names and not (splits and wrapper == "FSDPModule"):
            raise InputError(
                f"the model is wrapped in {wrapper}, which averages gradients by itself, so that uneven parts "
                "are summed wrongly; pass the bare model (model.module)"
            )


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimizer, and optimizers that need a closure."""
    if not isinstance(optimizer, Optimizer):
        raise InputTypeError(f"optimizer is a {type(optimizer).__name__}; give a torch.optim.Optimizer")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputTypeError(
            f"{type(optimizer).__name__} needs a closure, since it evaluates the loss several times in a step; a "
            "window of micro-batches is summed once. Use an optimizer that steps without one, such as SGD or AdamW"
        )


def check_held(optimizer: Optimizer, own: Container[int], what: str) -> None:
    """Refuse an optimizer that holds a parameter whose id is not in ``own``; ``what`` says the repair."""
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in own:
                raise InputError(
                    f"the optimizer's group {number} holds a parameter of shape {tuple(parameter.shape)} that {what}"
                )


def check_clip_norm(clip_norm: Any) -> None:
    """Refuse a norm to clip to that is not a positive number."""
    if clip_norm is not None and not (isinstance(clip_norm, numbers.Real) and float(clip_norm) > 0):
        raise ConfigError(f"clip_norm={clip_norm!r}; expected a positive number, or None for no clipping")


def check_nonfinite(nonfinite: Any) -> None:
    """Refuse an unknown policy."""
    if nonfinite not in NONFINITE:
        raise ConfigError(f"nonfinite={nonfinite!r}; expected one of {', '.join(NONFINITE)}")


def parameters_beside(optimizer: Optimizer, model: nn.Module, loss: nn.Module | None) -> list[Tensor]:
    """Return the parameters of model and loss that the optimizer does not hold.

    Raises:
        InputError: it holds others.
    """
    own = {id(p): p for p in model.parameters()}
    if loss is not None:
        own.update({id(p): p for p in loss.parameters()})
    check_held(
        optimizer,
        own,
        "neither the model nor the loss has; its gradient would not be summed. Make the optimizer from this "
        "model's parameters()",
    )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [parameter for number, parameter in own.items() if number not in held]
