"""The metrics of a loop: ours, or any object with ``update``, ``compute`` and ``reset``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import InputError, InputTypeError
from wholebatch.sums import Accuracy


class Metrics:
    """Named metrics that are fed together with (output, *targets).

    ``None`` chooses: the accuracy where outputs are scores of classes and targets class numbers, else nothing.

    Raises:
        InputTypeError: something that is no metric.
    """

    def __init__(self, metrics: Any = None, ignore_index: int | None = None) -> None:
        self._chooses = metrics is None
        self._ignore_index = ignore_index
        self._metrics: dict[str, Any] = {name: copy.deepcopy(metric) for name, metric in _named(metrics).items()}

    def add(self, output: Any, *targets: Any) -> None:
        """Feed one micro-batch."""
        if self._chooses:
            self._choose(output, targets)
        for metric in self._metrics.values():
            if hasattr(metric, "add"):
                metric.add(output, *targets)
            else:
                if isinstance(output, Tensor) and hasattr(metric, "to"):
                    metric.to(output.device)
                metric.update(output, *targets)

    def values(self) -> dict[str, float]:
        """Read all metrics.

        Raises:
            InputError: one of them is no single number.
        """
        values: dict[str, float] = {}
        for name, metric in self._metrics.items():
            value = metric.value if hasattr(metric, "add") else metric.compute()
            parts = value if isinstance(value, Mapping) else {name: value}
            for part, number in parts.items():
                if isinstance(number, Tensor) and number.numel() != 1:
                    raise InputError(
                        f"the metric {part!r} gives {tuple(number.shape)} values; a record holds one number per "
                        "metric, so reduce it (average='macro', say) or give one metric per number"
                    )
                values[str(part)] = float(number)
        return values

    def reset(self) -> None:
        """Start anew."""
        for metric in self._metrics.values():
            metric.reset()

    def __len__(self) -> int:
        return len(self._metrics)

    def _choose(self, output: Any, targets: tuple[Any, ...]) -> None:
        self._chooses = False
        if len(targets) != 1 or not isinstance(output, Tensor) or not isinstance(targets[0], Tensor):
            return
        whole = not targets[0].is_floating_point() and targets[0].dtype is not torch.bool
        if output.is_floating_point() and output.ndim >= 2 and whole and _is_class_of(output, targets[0]):
            self._metrics["accuracy"] = Accuracy(output.shape[1], ignore_index=self._ignore_index)


def _is_class_of(output: Tensor, target: Tensor) -> bool:
    return output.shape[1] > 1 and target.shape == (output.shape[0], *output.shape[2:])


def _named(metrics: Any) -> dict[str, Any]:
    if metrics is None:
        return {}
    if not isinstance(metrics, Mapping):
        several = metrics if isinstance(metrics, list | tuple) else [metrics]
        metrics = {type(metric).__name__.lower(): metric for metric in several}
    for name, metric in metrics.items():
        ours = hasattr(metric, "add") and hasattr(metric, "value") and hasattr(metric, "reset")
        if not ours and not all(hasattr(metric, method) for method in ("update", "compute", "reset")):
            raise InputTypeError(
                f"the metric {name!r} is a {type(metric).__name__}; give wholebatch.Accuracy, or an object "
                "with update(output, target), compute() and reset()"
            )
    return dict(metrics)
