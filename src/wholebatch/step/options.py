"""What a step's options may be."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from wholebatch.core.errors import ConfigError, InputError, InputTypeError
from wholebatch.schedule import attach
from wholebatch.step.engine import Engine
from wholebatch.step.parts import is_split
from wholebatch.step.precision import check_precision, is_half


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
