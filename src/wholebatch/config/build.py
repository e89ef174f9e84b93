"""From a configuration to the objects that training uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wholebatch import data, models, schedule
from wholebatch.config import arithmetic, transforms
from wholebatch.config.build_data import (
    as_pictures,
    check_data,
    datasets,
    expected_output,
    first_input,
    holds_tokens,
    known_of,
    training_data,
)
from wholebatch.config.schema import Config, Loss
from wholebatch.core.errors import ConfigError, DataError, InputError, nearest
from wholebatch.core.processes import Alone
from wholebatch.data.registry import classes_of
from wholebatch.step import WholeBatchLoss

LOSSES: Mapping[str, Callable[[Loss], nn.Module | WholeBatchLoss]] = MappingProxyType(
    {
        "cross_entropy": lambda said: nn.CrossEntropyLoss(label_smoothing=said.label_smoothing),
        "supervised_contrastive": lambda said: WholeBatchLoss(
            models.encode, models.SupervisedContrastive(said.temperature), outputs=lambda z, logits, classes: logits
        ),
    }
)
OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }
)
_REFUSED = {
    "lbfgs": "it evaluates the loss several times per step, which one pass over the micro-batches cannot give",
    "sparseadam": "it takes sparse gradients only, which none of the models here has",
}


@dataclass(frozen=True)
class Parts:
    """What a configuration builds. ``train_transform`` and ``test_transform`` are for the loaders of the two splits."""

    train_data: Any  # map-style, samples (image, label) or (tokens, targets)
    test_data: Any
    train_transform: data.Transform | None
    test_transform: data.Transform | None
    mix: data.Mix | None  # for the loader of the training part
    normalize: Any  # data.normalize with what "auto" came to, where it was computed
    model: nn.Module
    optimizer: Optimizer
    schedule: schedule.Schedule | None  # None: a constant learning rate
    loss: nn.Module | WholeBatchLoss
    num_classes: int
    classes: tuple[str, ...]
    steps_per_epoch: int  # optimizer steps of the first epoch; the last batch of an epoch may be shorter
    steps: int  # optimizer steps of the whole training
    progress: int  # where training ends, in schedule_unit; compare with schedule.end
    precision: str = "fp32"  # what "auto" came to
    channels_last: bool = False  # likewise; the model is laid out so


def build(config: Config) -> Parts:
    """Return all that training by ``config`` uses; nothing is written.

    >>> from wholebatch.config import load
    >>> build(load("digits")).num_classes
    10

    Raises:
        ConfigError: an unknown name or argument (the nearest is named), or a value that what it is for refuses.
        DataError: the data cannot be used.
    """
    check_names(config)
    train_data, test_data = datasets(config)
    normalizing, normalize = transforms.normalizing(config, train_data)
    classes = classes_of(train_data)
    test_transform = transforms.selected(config, train_data, normalizing)
    model = _model(config, train_data, classes, test_transform)
    last = arithmetic.channels_last(config, model)
    if last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sizes = config.sizes()
    steps = [sizes.steps(epoch, len(train_data)) for epoch in range(1 if sizes.fixed else config.epochs)]
    in_all = config.epochs * steps[0] if sizes.fixed else sum(steps)
    progress = in_all if config.schedule_unit == "step" else config.epochs
    return Parts(
        train_data=train_data,
        test_data=test_data,
        train_transform=transforms.selected(config, train_data, transforms.training(config, normalizing)),
        test_transform=test_transform,
        mix=transforms.mixing(config, len(classes)),
        normalize=normalize,
        model=model,
        optimizer=_optimizer(config, model),
        schedule=make_schedule(config, progress),
        loss=LOSSES[config.loss.name](config.loss),
        num_classes=len(classes),
        classes=classes,
        steps_per_epoch=steps[0],
        steps=in_all,
        progress=progress,
        precision=arithmetic.precision(config),
        channels_last=last,
    )


def look(config: Config, count: int) -> tuple[list[Any], list[str], Any]:
    """Return the first samples of the first epoch as training would see them, and the training data.

    Returns:
        images, C×H×W from 0 to 1 (what normalising did is undone); the names of their classes; the training data.

    Raises:
        DataError: the data cannot be used.
    """
    train_data = training_data(config)
    if holds_tokens(first_input(train_data)):
        raise DataError(f"{config.data.name} is text, and a sheet shows images")
    transform, _ = transforms.normalizing(config, train_data)
    classes = classes_of(train_data)
    as_trained = transforms.selected(config, train_data, transforms.training(config, transform)) or data.Compose()
    loader = data.BatchLoader(train_data, count, seed=config.seed, transform=as_trained)
    images, targets, *_ = next(iter(loader))
    return as_pictures(images, transform), [classes[int(target)] for target in targets], train_data


def check_names(config: Config) -> None:
    """Raise where the configuration names something that does not exist; reads no data and builds nothing.

    Raises:
        ConfigError: an unknown data set, model, optimizer, shape or loss, or an argument that it does not take.
    """
    check_data(config)
    if not models.is_foreign(config.model.name):
        _check_choice("model.name", config.model.name, models.MODELS)
    _check_choice("optimizer.name", config.optimizer.name.lower(), OPTIMIZERS)
    if config.optimizer.name.lower() in _REFUSED:
        raise ConfigError(f"optimizer.name={config.optimizer.name}: {_REFUSED[config.optimizer.name.lower()]}")
    _check_choice("schedule.shape", config.schedule.shape, schedule.SHAPES)
    _check_choice("loss.name", config.loss.name, LOSSES)
    options = models.options_of(config.model.name)
    if options is not None:
        _check_arguments("model", config.model.name, config.model.arguments, options - {*models.FROM_DATA})
    taken = inspect.signature(OPTIMIZERS[config.optimizer.name.lower()]).parameters
    _check_arguments("optimizer", config.optimizer.name, _optimizer_arguments(config), set(taken) - {"params", "lr"})
    shape = _shape_fields(config)
    if config.schedule.shape == "constant":
        shape -= {"max_update"}
    given = _schedule_arguments(config)
    _check_arguments("schedule", config.schedule.shape, given, shape - {"base_lr"})


def _check_choice(key: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        hint = nearest(name, known) or f"; choose from {', '.join(sorted(known))}"
        raise ConfigError(f"{key}={name}: there is no such {key.partition('.')[0]}{hint}")


def _check_arguments(group: str, name: str, given: Iterable[str], known: Collection[str]) -> None:
    for argument in given:
        if argument not in known:
            hint = nearest(argument, known) or f"; it takes {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"{group}.{argument}: {name} does not take it{hint}")


def make_model(config: Config, known: Mapping[str, Any]) -> nn.Module:
    """Return the model, its weights from the seed.

    Args:
        config: names it and its arguments.
        known: of the data (:func:`wholebatch.config.build_data.known_of`); what it takes of them, it is told.

    Raises:
        ConfigError: an argument that the model refuses.
    """
    taken = models.options_of(config.model.name)
    options = {name: value for name, value in known.items() if taken is None or name in taken} | config.model.arguments
    try:
        return models.build(config.model.name, seed=config.seed, **options)
    except InputError as error:
        raise ConfigError(f"model {error}") from error


def _model(config: Config, dataset: Any, classes: tuple[str, ...], transform: data.Transform | None) -> nn.Module:
    """The model for the data."""
    model = make_model(config, known_of(dataset, len(classes)))
    _check_fits(config, model, dataset, len(classes), transform)
    return model


def _check_fits(config: Config, model: nn.Module, dataset: Any, classes: int, transform: data.Transform | None) -> None:
    """Show the model two samples, as they come to it, before anything is written."""
    chosen = transform or data.Compose()
    inputs, targets, *_ = next(iter(data.BatchLoader(dataset, 2, shuffle=False, transform=chosen, group=Alone())))
    expected = expected_output(dataset, targets, classes)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model.eval()(inputs)
        if isinstance(output, torch.Tensor) and expected and output.shape[1 : 1 + len(expected)] != expected:
            raise ConfigError(_wrong_output(config, output, expected))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:  # an AssertionError is timm's: wrong size
        if isinstance(error, ConfigError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        others = ", ".join(sorted({*models.MODELS} - {config.model.name}))
        raise ConfigError(
            f"model.name={config.model.name}: it cannot take the samples of {config.data.name}, of shape "
            f"{tuple(inputs.shape[1:])}: {reason}; choose from {others}"
        ) from error
    finally:
        model.train()


def _wrong_output(config: Config, output: torch.Tensor, expected: tuple[int, ...]) -> str:
    gives = f"model.name={config.model.name}: it gives {tuple(output.shape)} for two"
    if len(expected) == 1:
        return f"{gives} samples of {expected[0]} classes; let it take num_classes"
    classes, places = expected
    return (
        f"{gives} texts of {places} places; expected (2, {classes}, {places}), the classes being axis 1 as torch's "
        "losses have it: output.transpose(1, 2)"
    )


def _optimizer(config: Config, model: nn.Module) -> Optimizer:
    kind = OPTIMIZERS[config.optimizer.name.lower()]
    make: Callable[..., Optimizer] = kind
    try:
        return make(model.parameters(), lr=config.lr, **_optimizer_arguments(config))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"optimizer {kind.__name__}: {error}") from error


def _optimizer_arguments(config: Config) -> dict[str, Any]:
    """What the configuration says about the optimizer; what it leaves out is the optimizer's own default."""
    own = {name: getattr(config.optimizer, name) for name in ("momentum", "nesterov", "weight_decay", "betas")}
    given = {name: value for name, value in own.items() if value is not None} | config.optimizer.arguments
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def make_schedule(config: Config, progress: int) -> schedule.Schedule | None:
    """Return the schedule over ``progress``, or None where the rate is constant from the beginning.

    Raises:
        ConfigError: an argument is missing or impossible.
    """
    say, shape = config.schedule, _shape_fields(config)
    warms_up_itself = "warmup_steps" in shape
    if say.shape == "constant" and not say.warmup_steps:
        return None
    arguments = {"base_lr": config.lr, **_schedule_arguments(config)}
    if "max_update" in shape:
        arguments.setdefault("max_update", progress)
        if say.warmup_steps >= arguments["max_update"]:
            end = "schedule.max_update" if say.max_update is not None else "the whole training"
            raise ConfigError(
                f"schedule.warmup_steps={say.warmup_steps}: must be less than {end}, which is "
                f"{arguments['max_update']} {config.schedule_unit}(s); lower it, or raise "
                f"{'it' if say.max_update is not None else 'epochs'}"
            )
    try:
        if warms_up_itself:
            warm_up = {"warmup_steps": say.warmup_steps, "warmup_begin_lr": say.warmup_begin_lr}
            return schedule.build(say.shape, **arguments, **warm_up)
        made = schedule.build(say.shape, **arguments)
        return schedule.Warmup(made, say.warmup_steps, say.warmup_begin_lr) if say.warmup_steps else made
    except (InputError, TypeError) as error:
        raise ConfigError(f"schedule {say.shape}: {error}") from error


def _schedule_arguments(config: Config) -> dict[str, Any]:
    """What the configuration says about the shape itself; the warm-up and the rate are said elsewhere."""
    own = {"max_update": config.schedule.max_update, "final_lr": config.schedule.final_lr}
    return {name: value for name, value in own.items() if value is not None} | config.schedule.arguments


def _shape_fields(config: Config) -> set[str]:
    return {field.name for field in fields(schedule.SHAPES[config.schedule.shape])}  # type: ignore[arg-type]
