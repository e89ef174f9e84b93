"""What ``parallel=`` says: how the processes are laid out, and which engine sums their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from wholebatch.core import processes
from wholebatch.core.device import device_of
from wholebatch.core.errors import ConfigError, InputError, nearest
from wholebatch.core.processes import Processes
from wholebatch.parallel import workers
from wholebatch.parallel.mesh import Layout, mesh_of
from wholebatch.parallel.pipeline import asked, pipeline_of
from wholebatch.parallel.replicate import DdpEngine, gives_sparse
from wholebatch.parallel.shard import ShardEngine
from wholebatch.parallel.tensor import TensorEngine
from wholebatch.step import Step
from wholebatch.step.engine import Engine, Flat
from wholebatch.step.grouped_norm import sums_within
from wholebatch.step.precision import is_half

ENGINES = ("auto", "flat", "ddp")
_KEYS = ("data", "shard", "tensor", "pipeline", "engine", "reshard", "plan", "schedule", "cuts")
_ALONE = "parallel: {}={!r} says nothing without {}=; leave it out"


def engine(parallel: Any = "auto", model: nn.Module | None = None, group: Any = None) -> Engine:
    """Return what sums the gradients of the processes, for ``Step(engine=…)`` and ``GradientAccumulator(engine=…)``.

    Every engine gives the same update; they differ in speed and memory. One engine serves one step or accumulator. With
    ``shard`` or ``tensor`` above 1, ``model`` is split in place: make its optimizer after that, or let :func:`adopt`
    give a new one the parts.

    Args:
        parallel: "flat" (after backward), "ddp" (DistributedDataParallel, during the last micro-batch's backward), or
            "auto": the one that is faster for the device of ``model``. Or a mapping of the processes along each
            dimension, whose product is their number: ``data`` ("auto" takes what is left), ``shard``, ``tensor``
            and ``pipeline`` (1), with ``engine`` (one of the names above, where no other than ``data`` is above 1),
            ``reshard`` ("step" or "layer", of ``shard``), ``plan`` (of ``tensor``), and of ``pipeline`` ``schedule``
            ("1f1b" or "gpipe" with one stage per process; "interleaved1f1b", "loopedbfs", "interleavedzerobubble",
            "zbvzerobubble" or "dualpipev" with two) and ``cuts``, the modules that each begin a stage (None: where the
            measured times are even). Or one with ``workers``, which changes the result
            (:mod:`wholebatch.parallel.workers`).
        model: what is trained; its device and layers decide "auto".
        group: torch.distributed's process group; its default one where one is initialised.

    >>> engine("flat").processes.size
    1

    Raises:
        ConfigError: something else, or another number of processes than there are; the message has the repair.
    """
    logical = workers.asked(parallel)
    if logical is not None:
        here = processes.current(group)
        Layout.of({"data": parallel.get("data", "auto")}, here.size)
        return logical.engine(here)
    here = processes.everyone(group)
    said = _said(parallel)
    layout = Layout.of(said, here.size)
    name = _name(said)
    if layout.only_data:
        if here.size == 1 or (_faster(model) if name == "auto" else name) == "flat":
            return Flat(here)
        return DdpEngine(here)
    return _splitting(layout, said, name, model, here, group)


def check(parallel: Any, size: int) -> None:
    """Refuse what ``size`` processes cannot do, whatever the model is: before they are started.

    Raises:
        ConfigError: as :func:`engine` does.
    """
    logical = workers.asked(parallel)
    if logical is not None:
        Layout.of({"data": parallel.get("data", "auto")}, size)
        return
    said = _said(parallel)
    layout = Layout.of(said, size)
    name = _name(said)
    if layout.pipeline > 1:
        asked(layout, said, name)
    elif not layout.only_data:
        _check_split(layout, name)


def step_for(parallel: Any = "auto") -> Callable[..., Step]:
    """Return what makes the step that ``parallel`` asks for: :class:`wholebatch.Step`, or one of local steps."""
    logical = workers.asked(parallel)
    return Step if logical is None else logical.step()


def refuse_bitwise(parallel: Any) -> None:
    """Refuse bitwise mode of a model that ``parallel`` would split, before it does.

    Raises:
        ConfigError: it would.
    """
    said = parallel if isinstance(parallel, Mapping) else {}
    for key in ("shard", "tensor", "pipeline", "workers"):
        if said.get(key) not in (None, 1):
            raise ConfigError(
                f"bitwise=True with parallel: {key}={said[key]!r} is not available in this version; leave one out"
            )


def _splitting(
    layout: Layout, said: Mapping[str, Any], name: str, model: nn.Module | None, here: Processes, group: Any
) -> Engine:
    if layout.pipeline > 1:
        return pipeline_of(layout, said, name, model, here)
    _check_split(layout, name)
    if model is None:
        raise ConfigError(f"parallel: {dict(said)} splits the model; give it: engine(…, model)")
    if group is not None:
        raise ConfigError(f"parallel: {dict(said)} lays out all processes; leave group= out")
    device = device_of(model).type
    mesh = mesh_of(layout, here, device)
    if layout.tensor > 1:
        return TensorEngine(mesh, model, said.get("plan"))
    return ShardEngine(mesh, model, said.get("reshard") or "step")


def _check_split(layout: Layout, name: str) -> None:
    if layout.shard > 1 and layout.tensor > 1:
        raise ConfigError(
            f"parallel: shard={layout.shard} with tensor={layout.tensor} is not available in this version; combine one "
            "of them with data"
        )
    if name != "auto":
        raise ConfigError(f"parallel: engine={name!r} is for data alone; leave it out, or leave shard and tensor out")


def adopt(optimizer: Any, made: Engine) -> None:
    """Let an optimizer made before its model was split hold the parts.

    Raises:
        InputError: it has stepped already.
    """
    moved = getattr(made, "moved", {})
    groups = getattr(optimizer, "param_groups", [])
    if not any(id(parameter) in moved for group in groups for parameter in group["params"]):
        return
    if optimizer.state:
        raise InputError(
            "the optimizer has a state, of the whole parameters, but the model is split now; give a function that "
            "makes the optimizer, or resume from a checkpoint"
        )
    for group in groups:
        group["params"] = [moved[id(p)][1] if id(p) in moved else p for p in group["params"]]


def _said(parallel: Any) -> Mapping[str, Any]:
    said = {"engine": parallel} if isinstance(parallel, str) or parallel is None else parallel
    if not isinstance(said, Mapping):
        names = ", ".join(repr(name) for name in ENGINES)
        raise ConfigError(f"parallel={parallel!r}; expected {names}, or a mapping of {', '.join(_KEYS)}")
    for key in said:
        if key not in _KEYS:
            hint = nearest(str(key), (*_KEYS, *workers.KEYS)) or f"; there are {', '.join(_KEYS)}"
            raise ConfigError(f"parallel: there is no key {key!r}{hint}")
    for key, of in (("reshard", "shard"), ("plan", "tensor"), ("schedule", "pipeline"), ("cuts", "pipeline")):
        if said.get(key) is not None and said.get(of, 1) == 1:
            raise ConfigError(_ALONE.format(key, said[key], of))
    return said


def _name(said: Mapping[str, Any]) -> str:
    name = said.get("engine", "auto")
    name = "auto" if name is None else name
    if name not in ENGINES:
        hint = nearest(str(name), ENGINES)
        raise ConfigError(f"parallel: engine={name!r}; expected one of {', '.join(ENGINES)}{hint}")
    return str(name)


def _faster(model: nn.Module | None) -> str:
    """What benchmarks/bench_processes.py shows on the CPU; on a GPU, where exchange and kernels overlap, untested."""
    if model is None or any(gives_sparse(layer) or sums_within(layer) for layer in model.modules()):
        return "flat"
    if any(is_half(parameter) for parameter in model.parameters()):
        return "flat"
    device = device_of(model)
    return "flat" if device.type == "cpu" else "ddp"
