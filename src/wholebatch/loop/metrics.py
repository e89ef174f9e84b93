"""The metrics of a loop: ours, or any object with ``update``, ``compute`` and ``reset``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.core.errors import InputError, InputTypeError
from wholebatch.core.processes import Processes, current
from wholebatch.sums import Accumulator, Accuracy
from wholebatch.sums.additive import Additive
from wholebatch.sums.together import all_reduce_together

# What a record says itself; a metric of such a name would hide it.
_TAKEN = ("step", "epoch", "samples", "kind", "split", "loss", "lr", "grad_norm", "seconds")

_CHOSEN = "accuracy"  # the metric that is chosen where none is given


class Metrics:
    """Named metrics that are fed together with (output, *targets).

    On several processes this library's cross as sums, and those of torchmetrics see to it by themselves. One that knows
    nothing of other processes is fed in every process, when it is read, with what all of them have seen, which is
    kept until then, on the CPU.

    Args:
        metrics: a metric, a dict of them by name, or a list; ``None`` chooses the accuracy where outputs are
            scores of classes and targets class numbers, else nothing.
        ignore_index: the target that the accuracy leaves out.

    Raises:
        InputTypeError: something that is no metric.
        InputError: two metrics of one name, or one named as a record's own entries are.
    """

    def __init__(self, metrics: Any = None, ignore_index: int | None = None) -> None:
        self._chooses = self._may_choose = metrics is None
        self._ignore_index = ignore_index
        self._metrics = _named(metrics)
        self._device: torch.device | None = None
        self._incomplete: set[str] = set()  # whose part of this epoch was lost in a restart
        self._apart: dict[str, Any] = {}  # those that know nothing of the other processes that there are
        self._rows: list[tuple[Any, ...]] = []  # what they have not been fed yet

    def add(self, output: Any, *targets: Any) -> None:
        """Feed one micro-batch."""
        if self._chooses:
            self._choose(output, targets)
        if isinstance(output, Tensor) and output.device != self._device:
            self._device = output.device
            for metric in self._metrics.values():
                if hasattr(metric, "to"):
                    metric.to(output.device)
        if self._apart:
            self._rows.append(tree.map_tensors(_copy_on_cpu, (output, *targets)))
        _feed((metric for name, metric in self._metrics.items() if name not in self._apart), (output, *targets))

    def values(self) -> dict[str, float]:
        """Read what this process fed.

        Raises:
            InputError: one of them is no single number.
        """
        return self._read(self._metrics)

    def running(self, processes: Processes) -> dict[str, float]:
        """Read what can be read without the other processes: with them, this library's metrics, of this one's part."""
        return self._read(self._metrics if processes.size == 1 else self._ours())

    def over_processes(
        self,
        processes: Processes,
        *sums: Accumulator,
        check: Callable[[Sequence[Accumulator]], None] = lambda wholes: None,
    ) -> tuple[dict[str, float], list[Accumulator]]:
        """Return the metrics' values over all processes, and ``sums`` over all processes; all processes call it.

        ``check`` looks at the sums, and may raise, before any metric that is not this library's is read.
        """
        if processes.size == 1:
            check(sums)
            return self.values(), list(sums)
        ours, wholes = self._all_reduce(sums)
        check(wholes)
        self._feed_together(processes)
        return self._read({**self._metrics, **ours}), wholes

    def _feed_together(self, processes: Processes) -> None:
        """Feed what all processes have seen, in rank order, to the metrics that know of none of them."""
        if not self._apart:
            return
        own, self._rows = self._rows, []
        for rows in processes.gather(own):
            for row in rows:
                _feed(self._apart.values(), tree.to_device(row, self._device or torch.device("cpu")))

    def sums_over_processes(self, processes: Processes) -> dict[str, Any]:
        """Return the states of this library's metrics over all processes, by name; all processes call it."""
        ours = self._ours() if processes.size == 1 else self._all_reduce(())[0]
        return {name: whole.state_dict() for name, whole in ours.items()}

    def load_sums(self, states: Mapping[str, Any], processes: Processes) -> list[str]:
        """Go on from the sums of all processes: the first one holds them, the others begin with none.

        Returns:
            Names of metrics that have lost what was fed in the epoch so far, since they are not this library's; they
            are left out of what is read until the next ``reset``.
        """
        self.reset()
        for name, state in states.items():
            if name not in self._metrics and self._may_choose and name == _CHOSEN:
                self._metrics[name] = Accuracy(state["signature"]["num_classes"], ignore_index=self._ignore_index)
                self._chooses = False
            if name in self._metrics and processes.rank == 0:
                self._metrics[name].load_state_dict(state)
        self._incomplete = set(self._metrics) - set(states)
        return sorted(self._incomplete)

    def _ours(self) -> dict[str, Additive]:
        return {name: metric for name, metric in self._metrics.items() if isinstance(metric, Additive)}

    def _all_reduce(self, sums: Sequence[Accumulator]) -> tuple[dict[str, Any], list[Any]]:
        """This library's metrics, by name, and ``sums`` over all processes.

        A process that saw no sample has not chosen yet; it takes what the others have chosen.
        """
        ours = self._ours()
        chosen = ours.pop(_CHOSEN, None) if self._may_choose else None
        offer = chosen.num_classes if isinstance(chosen, Accuracy) else 0
        accept = self._take if self._may_choose else None
        wholes: list[Any] = all_reduce_together([*sums, *ours.values()], offer=offer, accept=accept)
        names = [*ours, *([_CHOSEN] if self._may_choose else [])]
        return dict(zip(names, wholes[len(sums) :], strict=False)), wholes[: len(sums)]

    def _take(self, classes: int) -> Additive:
        """The accuracy over so many classes, made where this process has none yet."""
        if _CHOSEN not in self._metrics:
            self._metrics[_CHOSEN] = Accuracy(classes, ignore_index=self._ignore_index)
            self._chooses = False
        return cast(Additive, self._metrics[_CHOSEN])

    def _read(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for name, metric in metrics.items():
            if name in self._incomplete:
                continue
            value = metric.value if hasattr(metric, "add") else metric.compute()
            parts = value if isinstance(value, Mapping) else {name: value}
            values.update({str(part): _number(str(part), number) for part, number in parts.items()})
        return values

    def reset(self) -> None:
        """Start anew."""
        self._incomplete = set()
        alone = current().size == 1
        self._apart = {} if alone else {name: one for name, one in self._metrics.items() if not _knows_of_others(one)}
        self._rows = []
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
            self._metrics[_CHOSEN] = Accuracy(output.shape[1], ignore_index=self._ignore_index)


def ignored(loss: Any) -> int | None:
    """Return the target that a loss leaves out, where it says one as torch's losses do.

    >>> ignored(torch.nn.CrossEntropyLoss(ignore_index=3))
    3
    """
    value = getattr(loss, "ignore_index", None)
    return value if isinstance(value, int) else None


def _is_class_of(output: Tensor, target: Tensor) -> bool:
    return output.shape[1] > 1 and target.shape == (output.shape[0], *output.shape[2:])


def _knows_of_others(metric: Any) -> bool:
    """Whether it can be added over processes, or asks them when it is read, as those of torchmetrics do by default."""
    parts = list(metric.values()) if isinstance(metric, nn.ModuleDict) else [metric]  # a MetricCollection is one
    return isinstance(metric, Additive) or all(getattr(part, "sync_on_compute", False) for part in parts)


def _feed(metrics: Iterable[Any], row: tuple[Any, ...]) -> None:
    for metric in metrics:
        (metric.add if hasattr(metric, "add") else metric.update)(*row)


def _copy_on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)  # of a view, so that only what is seen is kept and sent


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise InputError(
            f"the metric {name!r} gives {tuple(value.shape)} values; a record holds one number per metric, "
            "so reduce it (average='macro', say) or give one metric per number"
        )
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"the metric {name!r} gives {value!r:.40}; a record holds one number per metric") from None


def _named(metrics: Any) -> dict[str, Any]:
    """The metrics by name; one that has no name is called after its type."""
    if metrics is None:
        return {}
    if isinstance(metrics, Mapping):
        pairs = [(str(name), metric) for name, metric in metrics.items()]
    else:
        several = metrics if isinstance(metrics, list | tuple) else [metrics]
        pairs = [(type(metric).__name__.lower(), metric) for metric in several]
    for name, metric in pairs:
        ours = hasattr(metric, "add") and hasattr(metric, "value") and hasattr(metric, "reset")
        if not ours and not all(hasattr(metric, method) for method in ("update", "compute", "reset")):
            raise InputTypeError(
                f"the metric {name!r} is a {type(metric).__name__}; give wholebatch.Accuracy, or an object "
                "with update(output, target), compute() and reset()"
            )
        if name in _TAKEN or [known for known, _ in pairs].count(name) > 1:
            raise InputError(f"a metric cannot be named {name!r}, which is taken; pass a dict with other names")
    return dict(pairs)
