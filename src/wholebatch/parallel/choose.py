"""What ``parallel=`` says: how many processes share the data, and which engine sums their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from wholebatch.core import processes
from wholebatch.core.errors import ConfigError, nearest
from wholebatch.core.processes import Processes
from wholebatch.parallel import workers
from wholebatch.parallel.replicate import DdpEngine, gives_sparse
from wholebatch.step import Step
from wholebatch.step.engine import Engine, Flat
from wholebatch.step.grouped_norm import sums_within
from wholebatch.step.precision import is_half

ENGINES = ("auto", "flat", "ddp")
_KEYS = ("data", "engine")
_LATER = ("shard", "tensor", "pipeline")


def engine(parallel: Any = "auto", model: nn.Module | None = None, group: Any = None) -> Engine:
    """Return what sums the gradients of the processes, for ``Step(engine=…)`` and ``GradientAccumulator(engine=…)``.

    Every engine gives the same update; they differ in speed. One engine serves one step or accumulator.

    Args:
        parallel: "flat" (after backward), "ddp" (DistributedDataParallel, during the last micro-batch's backward), or
            "auto": the one that is faster for the device of ``model``. Or a mapping with ``engine``, one of these, and
            ``data``, the number of processes: "auto" is as many as there are. Or one with ``workers``, which changes
            the result (:mod:`wholebatch.parallel.workers`).
        model: what is trained; its device and layers decide "auto".
        group: torch.distributed's process group; its default one where one is initialised.

    >>> engine("flat").processes.size
    1

    Raises:
        ConfigError: something else, or another number of processes than there are; the message has the repair.
    """
    here = processes.current(group)
    logical = workers.asked(parallel)
    if logical is not None:
        _check_size(parallel.get("data", "auto"), here)
        return logical.engine(here)
    name = _name(parallel, here)
    if here.size == 1 or (name if name != "auto" else _faster(model)) == "flat":
        return Flat(here)
    return DdpEngine(here)


def step_for(parallel: Any = "auto") -> Callable[..., Step]:
    """Return what makes the step that ``parallel`` asks for: :class:`wholebatch.Step`, or one of local steps."""
    logical = workers.asked(parallel)
    return Step if logical is None else logical.step()


def _name(parallel: Any, here: Processes) -> str:
    said = {"engine": parallel} if isinstance(parallel, str) or parallel is None else parallel
    if not isinstance(said, Mapping):
        raise ConfigError(f"parallel={parallel!r}; expected 'auto', 'flat', 'ddp', or a mapping with data and engine")
    for key in said:
        if key in _LATER:
            raise ConfigError(f"parallel: {key}={said[key]!r} is not available in this version; leave it out")
        if key not in _KEYS:
            raise ConfigError(f"parallel: there is no key {key!r}{nearest(str(key), _KEYS) or '; use data and engine'}")
    _check_size(said.get("data", "auto"), here)
    name = said.get("engine", "auto")
    name = "auto" if name is None else name
    if name not in ENGINES:
        hint = nearest(str(name), ENGINES)
        raise ConfigError(f"parallel: engine={name!r}; expected one of {', '.join(ENGINES)}{hint}")
    return str(name)


def _check_size(data: Any, here: Processes) -> None:
    if data == "auto":
        return
    if isinstance(data, bool) or not isinstance(data, int) or data < 1:
        raise ConfigError(f"parallel: data={data!r}; expected 'auto', or the number of processes")
    if data != here.size:
        raise ConfigError(
            f"parallel: data={data}, but the number of processes is {here.size}; start {data} of them (wholebatch "
            f"train --processes {data}, or torchrun --nproc-per-node {data}), or say data='auto'"
        )


def _faster(model: nn.Module | None) -> str:
    """What benchmarks/bench_processes.py shows on the CPU; on a GPU, where exchange and kernels overlap, untested."""
    if model is None or any(gives_sparse(layer) or sums_within(layer) for layer in model.modules()):
        return "flat"
    if any(is_half(parameter) for parameter in model.parameters()):
        return "flat"
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return "flat" if device.type == "cpu" else "ddp"
