"""The learning rate that follows the batch size: scaled for each update, and given back after it."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor
from torch.optim import Optimizer

from wholebatch.core.errors import InputError
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.schedule import scale_lr


class BatchRate:
    """Within its block the optimizer's steps use its rates times that of the batch size to the first one.

    The groups hold the scaled rates only while the optimizer steps. So schedules that go on from a group's rate, and
    checkpoints, know nothing of it.

    Args:
        optimizer: whose rates follow.
        loader: which says how large the present batch was to be.
        rule: "linear" or "sqrt" (:func:`wholebatch.scale_lr`).

    Raises:
        ConfigError: an unknown rule.
        InputError: the loader is of a stream, which has no sizes of its own.
    """

    def __init__(self, optimizer: Optimizer, loader: BatchLoader | StreamLoader, rule: str) -> None:
        if not isinstance(loader, BatchLoader):
            raise InputError(f"batch_lr_rule={rule!r} needs data with random access; leave it out")
        scale_lr(1.0, batch_size=1, reference=1, rule=rule)
        self._optimizer, self._loader, self._rule = optimizer, loader, rule
        self._hooks: list[Any] = []
        self._before: list[Any] = []

    @property
    def factor(self) -> float:
        """What the rates of the present batch are multiplied by."""
        sizes = self._loader.sizes
        return scale_lr(1.0, batch_size=self._loader.scheduled_size, reference=sizes.first, rule=self._rule)

    def __enter__(self) -> Self:
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._scale),
            self._optimizer.register_step_post_hook(self._give_back),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._give_back()  # where the step itself failed

    def _scale(self, *_: object) -> None:
        factor = self.factor
        groups = self._optimizer.param_groups
        self._before = [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]
        for group, rate in zip(groups, self._before, strict=True):
            _set(group, rate * factor)

    def _give_back(self, *_: object) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._before, strict=False):
            _set(group, rate)
        self._before = []


def _set(group: dict[str, Any], rate: Any) -> None:
    """Set a group's rate; a tensor is filled in place, since compiled and captured steps hold on to it."""
    if isinstance(group["lr"], Tensor):
        group["lr"].copy_(rate)
    else:
        group["lr"] = rate
