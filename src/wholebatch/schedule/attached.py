"""A schedule applied to an optimizer, as a torch ``LRScheduler``.

The rate of a parameter group is s(t) · (its initial rate / the largest initial rate), t being the number of
optimizer steps so far: the schedule says the rate, the groups' initial rates only their ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core.errors import ConfigError, InputError, InputTypeError


def attach(schedule: Callable[[Any], Any], optimizer: Optimizer) -> Attached:
    """Return a torch ``LRScheduler`` that sets the optimizer's rates from ``schedule``; call its ``step()`` per update.

    It sets the rates for t = 0 at once. Call ``step()`` after each ``optimizer.step()``, once per update and never
    per micro-batch. The largest initial rate counts as 1, so that its group gets s(t) itself; a group of rate 0 stays
    at 0. The initial rate is the group's ``initial_lr`` where an earlier LRScheduler left one, else its ``lr``.
    Rates that are tensors (capturable and compiled optimizers) are filled in place.

    Args:
        schedule: a function of progress in steps, such as :class:`~wholebatch.schedule.CosineScheduler`.
        optimizer: any ``torch.optim.Optimizer``.

    Raises:
        InputTypeError: ``schedule`` is no function of progress, or ``optimizer`` no optimizer.
        ConfigError: all initial rates are 0, or one is negative or not finite.
        InputError: (here and in ``step``) the schedule gives a negative or non-finite rate.

    >>> import torch
    >>> from wholebatch.schedule import LinearScheduler
    >>> weight, bias = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.2}, {"params": [bias], "lr": 0.1}])
    >>> lrs = attach(LinearScheduler(4, base_lr=1.0), optimizer)
    >>> optimizer.step(); lrs.step()
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.75, 0.375]
    """
    return Attached(schedule, optimizer)


class Attached(LRScheduler):
    """What :func:`attach` returns; its state is plain numbers, the schedule itself is not part of it."""

    def __init__(self, schedule: Callable[[Any], Any], optimizer: Optimizer) -> None:
        if isinstance(schedule, LRScheduler):
            raise InputTypeError(f"attach needs a function of progress; {type(schedule).__name__} is attached already")
        if not callable(schedule):
            raise InputTypeError(f"attach needs a function of progress; got {type(schedule).__name__} {schedule!r:.60}")
        if not isinstance(optimizer, Optimizer):
            raise InputTypeError(f"attach needs a torch.optim.Optimizer; got {type(optimizer).__name__}")
        self.schedule = schedule
        initial = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        self._ratios = _ratios(initial)
        _rate(schedule, 0)  # what cannot be asked is refused before the optimizer is touched
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """Return each group's rate at the present progress, ``last_epoch``."""
        groups = len(self.optimizer.param_groups)
        if groups != len(self._ratios):
            raise ConfigError(
                f"the optimizer has {groups} parameter groups, but had {len(self._ratios)} when the schedule was "
                "attached; attach it after the last add_param_group"
            )
        rate = _rate(self.schedule, self.last_epoch)
        return [rate * ratio for ratio in self._ratios]

    def state_dict(self) -> dict[str, Any]:
        """Return the progress and the initial rates, as plain numbers."""
        return {"last_epoch": self.last_epoch, "base_lrs": [float(rate) for rate in self.base_lrs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, and set the optimizer's rates to it, whatever was loaded into the optimizer before.

        Raises:
            ConfigError: it is the state of another number of parameter groups, or not of an attached schedule.
        """
        missing = {"last_epoch", "base_lrs"} - state_dict.keys()
        if missing:
            raise ConfigError(f"this is no state of an attached schedule: {sorted(missing)} missing")
        initial = [float(rate) for rate in state_dict["base_lrs"]]
        if len(initial) != len(self.optimizer.param_groups):
            raise ConfigError(
                f"the state is of {len(initial)} parameter groups, the optimizer has "
                f"{len(self.optimizer.param_groups)}; make it with the groups it had when the state was saved"
            )
        self._ratios = _ratios(initial)
        self.base_lrs = list(initial)
        self.last_epoch = int(state_dict["last_epoch"])
        self._step_count = self.last_epoch + 1  # as torch counts: its check of the very first step is over
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = self.get_lr()


def _ratios(initial: list[float]) -> list[float]:
    """Each initial rate by the largest one."""
    largest = max(initial)
    for place, rate in enumerate(initial):
        if not 0 <= rate < math.inf:
            raise ConfigError(f"parameter group {place} has the learning rate {rate}; give a finite rate of at least 0")
    if largest == 0:
        raise ConfigError(
            f"all {len(initial)} parameter groups have the learning rate 0, so that their ratios are unknown; "
            "give the optimizer lr=1 (a schedule sets the rate, the groups' own rates only their ratios)"
        )
    return [rate / largest for rate in initial]


def _rate(schedule: Callable[[Any], Any], t: int) -> float:
    """The schedule's rate at ``t``, checked."""
    rate = float(schedule(t))
    if not 0 <= rate < math.inf:
        raise InputError(
            f"the schedule {schedule!r:.200} gives the rate {rate} at t={t}; a rate is finite and at least 0"
        )
    return rate
