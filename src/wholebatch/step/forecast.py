"""What a step costs on many processes, by arithmetic from one process's measured time and the bytes that travel.

With N = data × shard × pipeline × tensor processes, G bytes of gradients and P of parameters, one process sends in a
step:

=====================  ==============================================================================================
gradients              2 (D − 1)/D · G / (S K), a ring all-reduce over the D along data (P. Patarasuk and X. Yuan, 2009)
sharding               (S − 1)/S · (P + G) / K: parameters gathered once a window, gradients scattered once
stages                 2 · samples · A: what crosses a cut, forward and backward, A bytes a sample
tensor group           (T − 1)/T · samples · (2 U + V): U bytes a sample are summed within it, V gathered, by rings
=====================  ==============================================================================================

The link carries so many bytes a second each way, and each of the 2 (D − 1) + 2 (S − 1) hops of a ring waits a latency.
Gradients travel while the backward pass of the last micro-batch runs, which is two thirds of its time; the rest is
waited for. A pipeline of K stages waits K − 1 micro-batches to fill and to drain (Y. Huang et al., GPipe, 2019). What
a tensor group exchanges is not hidden; each of its processes has, computes and sends gradients of a part of the layers
that are split.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.core.errors import ConfigError
from wholebatch.step.losses import bind
from wholebatch.step.plan import Plan
from wholebatch.step.precision import autocast
from wholebatch.step.tensor_group import TensorGroup

_BACKWARD = 2 / 3  # of the time of forward and backward
_REPEATS = 5
_LARGEST_BATCH = 2**40
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Speed:
    """What one process takes, in seconds: ``a_pass + samples · a_sample`` for a micro-batch, ``update`` for a step."""

    a_pass: float
    a_sample: float
    update: float = 0.0

    def seconds(self, samples: float) -> float:
        """Return the time of forward and backward of one micro-batch.

        >>> Speed(0.25, 0.125).seconds(4)
        0.75
        """
        return self.a_pass + samples * self.a_sample


@dataclass(frozen=True)
class Layout:
    """How many processes there are along each dimension."""

    data: int
    shard: int = 1
    pipeline: int = 1
    tensor: int = 1

    @classmethod
    def of(cls, processes: int, shard: int = 1, pipeline: int = 1, tensor: int = 1) -> Layout:
        """Return the layout of so many processes, data taking what the others leave.

        Raises:
            ConfigError: they are no divisor of the processes, or cannot be combined.
        """
        for name, number in {"shard": shard, "pipeline": pipeline}.items():
            if number > 1 and tensor > 1:
                raise ConfigError(
                    f"parallel: {name}={number} with tensor={tensor} is not available in this version; combine one of "
                    "them with data"
                )
        others = {"shard": shard, "pipeline": pipeline} | ({"tensor": tensor} if tensor > 1 else {})
        if processes % math.prod(others.values()):
            said = " × ".join(f"{name}={number}" for name, number in others.items())
            raise ConfigError(f"{processes} processes are no multiple of {said} = {math.prod(others.values())}")
        return cls(processes // math.prod(others.values()), shard, pipeline, tensor)

    @property
    def processes(self) -> int:
        """All of them."""
        return self.data * self.shard * self.pipeline * self.tensor


@dataclass(frozen=True)
class Forecast:
    """One step on many processes; seconds, and bytes that the busiest process has or sends."""

    processes: int
    data: int
    shard: int
    pipeline: int
    tensor: int
    batch_size: int
    samples: int
    """Of one process, or of one pipeline or tensor group."""
    micro_batch: int
    memory: int
    """Bytes at the peak of a step."""
    sent_gradients: int
    """Bytes of gradients, and of parameters where they are sharded."""
    sent_activations: int
    """Bytes that cross a pipeline's cut, or that a tensor group exchanges."""
    compute: float
    bubble: float
    link: float
    """Seconds that gradients travel; part of them is hidden."""
    waited: float
    """Seconds that the link is waited for."""
    step: float
    samples_per_second: float
    efficiency: float
    """The speed over that of so many single processes, 1 at best."""


class Cluster:
    """Processes that are all alike, and the links between them.

    Args:
        plan: of the recipe's step in one process (:func:`wholebatch.plan`), not sharded.
        speed: of one process.
        bytes_per_second: that a process's link carries each way.
        latency: seconds of one message.
        crossing: bytes a sample that cross from one stage of a pipeline to the next.
        group: what a tensor group exchanges; without it nothing is split, and nothing exchanged.
        micro_batch: samples that one forward sees, at most; None is all.
    """

    def __init__(
        self,
        plan: Plan,
        speed: Speed,
        bytes_per_second: float,
        *,
        latency: float = 20e-6,
        crossing: int = 0,
        group: TensorGroup | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.plan, self.speed, self.rate, self.latency = plan, speed, bytes_per_second, latency
        self.crossing, self.group, self.micro_batch = crossing, group or TensorGroup(), micro_batch

    def forecast(self, layout: Layout, batch_size: int) -> Forecast:
        """Return what a step of ``batch_size`` samples costs."""
        samples, micro = self._cut(layout, batch_size)
        passes = math.ceil(samples / micro)
        times = self._times(layout, batch_size)
        step = sum(times.values())
        return Forecast(
            processes=layout.processes,
            data=layout.data,
            shard=layout.shard,
            pipeline=layout.pipeline,
            tensor=layout.tensor,
            batch_size=batch_size,
            samples=samples,
            micro_batch=micro,
            memory=self.memory(layout, micro, passes),
            sent_gradients=self.sent_gradients(layout),
            sent_activations=self._sent_activations(layout, samples),
            link=self.link_seconds(layout),
            step=step,
            samples_per_second=batch_size / step,
            efficiency=self.efficiency(layout, batch_size),
            **times,
        )

    def efficiency(self, layout: Layout, batch_size: int) -> float:
        """Return the speed over that of so many single processes, each with the whole batch for itself."""
        alone = sum(self._times(Layout(1), batch_size).values())
        return min(1.0, alone / layout.processes / sum(self._times(layout, batch_size).values()))

    def _cut(self, layout: Layout, batch_size: int) -> tuple[int, int]:
        """The samples of one process or pipeline, of the one that has most, and of one micro-batch."""
        samples = max(1, math.ceil(batch_size / (layout.data * layout.shard)))
        by_itself = samples if layout.pipeline == 1 else math.ceil(samples / (4 * layout.pipeline))
        return samples, min(samples, self.micro_batch or by_itself)

    def _times(self, layout: Layout, batch_size: int) -> dict[str, float]:
        """The seconds of a step: of computing, of a pipeline that fills and drains, of waiting for the link."""
        samples, micro = self._cut(layout, batch_size)
        shard, stages = layout.shard, layout.pipeline
        passes = math.ceil(samples / micro)
        part = self.group.part(layout.tensor)  # every process runs every layer, but of those that are split a part
        one = (self.speed.a_pass + micro * self.speed.a_sample * part) / stages
        compute = (passes * self.speed.a_pass + samples * self.speed.a_sample * part) / stages
        waited = max(0.0, self.link_seconds(layout) - _BACKWARD * one)
        return {
            "compute": compute + self.speed.update * part / (shard * stages),
            "bubble": (stages - 1) * one,
            "waited": waited + self.activation_seconds(layout, samples, passes),
        }

    def _sent_activations(self, layout: Layout, samples: int) -> int:
        crossing = 2 * samples * self.crossing if layout.pipeline > 1 else 0
        return crossing + round(self.group.sent(layout.tensor, samples))

    def activation_seconds(self, layout: Layout, samples: int, passes: int) -> float:
        """Return the time that activations and their gradients travel, of ``samples`` in so many micro-batches."""
        hops = (2 * passes if layout.pipeline > 1 else 0) + self.group.hops(layout.tensor, passes)
        return self._sent_activations(layout, samples) / self.rate + hops * self.latency

    def sent_gradients(self, layout: Layout) -> int:
        """Return the bytes of gradients and parameters that a process sends in one step.

        >>> plan = Plan(100, 100, 0, 0, 1, 0, "fp32", None, 1, lambda micro_batch: 200)
        >>> Cluster(plan, Speed(0, 1), 1.0).sent_gradients(Layout(4))
        150
        """
        data, shard, stages = layout.data, layout.shard, layout.pipeline
        over_data = 2 * (data - 1) / data * self.plan.gradients / (shard * stages)
        sharded = (shard - 1) / shard * (self.plan.parameters + self.plan.gradients) / stages
        return round((over_data + sharded) * self.group.part(layout.tensor))

    def link_seconds(self, layout: Layout) -> float:
        """Return the time that they take."""
        hops = 2 * (layout.data - 1) + 2 * (layout.shard - 1)
        return self.sent_gradients(layout) / self.rate + hops * self.latency

    def memory(self, layout: Layout, micro_batch: int, passes: int) -> int:
        """Return the bytes of one process at the peak, its share of what the plan counts.

        A stage holds the activations of as many micro-batches as there are stages, at most (1F1B). Those of a tensor
        group's process are counted whole, although it has some columns, heads or tokens alone of some of them.
        """
        plan = self.plan
        always = plan.parameters + plan.gradients + plan.optimizer
        moving = plan.peak(micro_batch) - always
        held = min(passes, layout.pipeline)
        always = round(always * self.group.part(layout.tensor))
        gathered = 0 if layout.shard == 1 else plan.parameters / layout.pipeline  # while a window runs
        return round(always / (layout.shard * layout.pipeline) + gathered + moving * held / layout.pipeline)

    def hides_from(self, layout: Layout) -> int | None:
        """Return the batch size from which the gradients travel unseen; None where no micro-batch is long enough.

        That is where the last backward pass takes as long as they do; a process's samples are one micro-batch there.
        """
        needed = self.link_seconds(layout) * layout.pipeline / _BACKWARD - self.speed.a_pass
        a_sample = self.speed.a_sample * self.group.part(layout.tensor)
        samples = max(1, math.ceil(needed / a_sample)) if a_sample else 1
        fits = self.micro_batch if self.plan.memory is None else self.plan.largest()
        if fits is not None and samples > fits and layout.shard == layout.pipeline == layout.tensor == 1:
            return None
        return samples * layout.data * layout.shard

    def batch_for(self, layout: Layout, efficiency: float) -> int | None:
        """Return the smallest batch size, a multiple of the parts, that is so efficient; None where none is."""
        parts = layout.data * layout.shard

        def enough(samples: int) -> bool:
            return self.efficiency(layout, samples * parts) >= efficiency

        return None if (found := _first(enough)) is None else found * parts


def _first(enough: Callable[[int], bool]) -> int | None:
    """The smallest number for which ``enough`` holds, as it does for all larger ones."""
    high = 1
    while not enough(high):
        high *= 2
        if high > _LARGEST_BATCH:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def as_dict(forecast: Forecast) -> dict[str, Any]:
    """Return a forecast as numbers for programs."""
    return asdict(forecast)


def rate_of(link: str) -> float:
    """Return bytes a second from "400Gb/s" (bits) or "50 GB/s" (bytes).

    >>> rate_of("400Gb/s"), rate_of("1.5 GB/s"), rate_of("100 Mbit/s")
    (50000000000.0, 1500000000.0, 12500000.0)

    Raises:
        ConfigError: it is no such thing.
    """
    text = link.strip().replace(" ", "")
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/")
    unit = text[len(digits) :]
    name = unit.removesuffix("/s").removesuffix("ps").replace("bit", "b").replace("byte", "B")
    try:
        if unit == name or name[-1:] not in ("b", "B"):
            raise ValueError
        found = float(digits) * _PREFIXES[name[:-1].lower()] / (8 if name[-1] == "b" else 1)
    except (KeyError, ValueError):
        found = 0.0
    if not 0 < found < math.inf:
        raise ConfigError(f"link={link!r}; expected a rate, such as 400Gb/s (bits) or 50GB/s (bytes)")
    return found


def measured(
    model: nn.Module, batch: Any, loss: Any, optimizer: Optimizer, precision: str, device: torch.device
) -> Speed:
    """Return what one process takes, measured on copies: forward and backward at two sizes, and the update.

    Args:
        model: any module, in training mode.
        batch: of at least two samples.
        loss, optimizer, precision: as for :class:`Step`.
        device: where it runs.
    """
    call, samples = bind(loss), tree.count(batch)
    model, optimizer = copy.deepcopy((model, optimizer))
    model.to(device).train()
    few = max(1, samples // 4)
    batch = tree.to_device(batch, device)
    pieces = {samples: batch, few: tree.cut(batch, 0, few, samples)}

    def passes(piece: Any) -> None:
        with autocast(precision, device):
            output = call.forward(model, piece)
            total = call.summed(output, piece, 0, tree.count(piece), False)[0]
        total.backward()

    times = {size: _best(lambda piece=piece: passes(piece), device) for size, piece in pieces.items()}  # type: ignore[misc]
    update = _best(optimizer.step, device)
    if samples == few or times[samples] <= times[few]:
        return Speed(0.0, times[samples] / samples, update)
    a_sample = (times[samples] - times[few]) / (samples - few)
    return Speed(max(0.0, times[samples] - samples * a_sample), a_sample, update)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest time of a few, the first of which does not count."""
    times = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])
