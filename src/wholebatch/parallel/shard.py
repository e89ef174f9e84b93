"""Parameters, gradients and optimizer state split over processes, by torch's ``fully_shard``.

Its own averaging is off: gradients are sums, divided once when the window is over. Two ways trade memory for
communication:

- ``reshard="step"``: parameters are whole from the window's first forward to its end, and gradients until then; only
  then are these summed, each process keeping its part. What is split all the time is the optimizer's state. Two
  transfers of the model per step, however many micro-batches; no process waits for another within the window, so that
  any number of micro-batches on any process is served, and errors travel as they do without sharding.
- ``reshard="layer"``: a layer is whole only while it runs. Gradients are summed after every micro-batch, and only parts
  of them are kept. Three transfers of the model per micro-batch; every process has to make as many passes, and one
  that has fewer micro-batches makes passes that count nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.core.errors import ConfigError
from wholebatch.core.processes import Processes
from wholebatch.parallel.mesh import Mesh
from wholebatch.step.over_processes import Totals, add_totals, same_start
from wholebatch.step.parts import SPLIT, Split, gather, units_of

RESHARD = ("step", "layer")


class ShardEngine:
    """Sums gradients of a sharded model (:class:`wholebatch.step.engine.Engine`); made, it has sharded the model."""

    overlaps = False
    sums_alone = False

    def __init__(self, mesh: Mesh, model: nn.Module, reshard: str = "step") -> None:
        if reshard not in RESHARD:
            raise ConfigError(f"parallel: reshard={reshard!r}; expected one of {', '.join(RESHARD)}")
        self.processes = mesh.samples
        self.world: Processes | None = mesh.samples
        self.mesh = mesh
        self.lockstep = self.stands_in = reshard == "layer"
        self._parameters: Sequence[Tensor] = ()
        self._used: set[str] = set()
        self.moved = _shard(mesh, model, whole_between=reshard == "step")
        setattr(model, SPLIT, Split(mesh.samples, self.lockstep))
        root: Any = model
        self._root: Any = root
        root._get_fsdp_state()._lazy_init()  # else the first forward does so, which not every process makes
        self._note_used(model)
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        if reshard == "step":
            _detach(model)
            model.register_forward_pre_hook(self._gather, prepend=True)

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; no parameter has a gradient. Every process gathers, whether it has samples or not."""
        self._parameters = parameters
        self._used.clear()
        self._gather(model)
        if not self.lockstep:
            for parameter in self._root.parameters():  # whole now: what a window that failed has left of gradients
                parameter.grad = None

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Run backward; with ``reshard="layer"`` the gradients are summed meanwhile."""
        torch.autograd.backward((loss_sum,), (upstream,))

    def own_norm(self) -> Tensor | None:
        """None: what there is are parts, or sums over the processes."""
        return None

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Sum the totals; with ``reshard="step"`` the gradients too; forget those that nobody has."""
        used = [self._names.get(id(parameter)) in self._used for parameter in self._parameters]
        try:
            whole, kinds = add_totals(self.processes, own, ["dense" if one else "none" for one in used], error)
        except BaseException:
            self._abandon()
            raise
        if not self.lockstep:
            self._sum()
        for parameter, kind in zip(self._parameters, kinds, strict=True):
            if kind == "none":
                parameter.grad = None
        return whole

    def _gather(self, model: nn.Module, inputs: Any = None) -> None:
        """Gather all layers in their order, so that no process waits for another within a forward.

        Nothing is gathered twice: a layer that is whole stays so until the window's end.
        """
        if not self.lockstep:
            gather(model)

    def _sum(self) -> None:
        """Sum the accumulated gradients, every process its parts, and give the whole parameters up."""
        # What torch calls at a backward's end: it sums the gradients of every layer for which no hook of its own has.
        # There is no public way to sum without a backward, which a process without samples has not.
        self._root._get_fsdp_state()._root_post_backward_final_callback()

    def _abandon(self) -> None:
        """Forget the gradients of a window that failed."""
        self._root.reset_iter_state()
        for parameter in self._root.parameters():
            parameter.grad = None

    def _note_used(self, model: nn.Module) -> None:
        """Note which parameters get a gradient here: those that are not used get zeros, which tell nothing.

        Whole parameters are made at the first forward, and are the same ones ever after.
        """
        known: set[int] = set()

        def note(unit: nn.Module, inputs: Any, prefix: str) -> None:
            for name, parameter in unit.named_parameters():
                if not hasattr(parameter, "placements") and parameter.requires_grad and id(parameter) not in known:
                    known.add(id(parameter))
                    full = f"{prefix}.{name}" if prefix else name
                    parameter.register_post_accumulate_grad_hook(lambda _, full=full: self._used.add(full))

        sharded = set(units_of(model))
        for prefix, unit in model.named_modules():
            if unit in sharded:
                unit.register_forward_pre_hook(lambda u, i, prefix=prefix: note(u, i, prefix))


def _detach(model: nn.Module) -> None:
    """Take torch's hooks off forward, and with them those of backward, which they set.

    They gather, sum and give up layer by layer, which here happens once a window; and a forward within a forward
    (one that is made to see where a dropped tensor's samples are) leads them astray.
    """
    for unit in units_of(model):
        state = unit._get_fsdp_state()
        state._pre_forward_hook_handle.remove()
        state._post_forward_hook_handle.remove()


def _shard(mesh: Mesh, model: nn.Module, whole_between: bool) -> dict[int, tuple[Tensor, Tensor]]:
    """Shard ``model`` in place; return its parameters before and after, by the ids of the former."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(f"parallel: shard needs torch 2.13 or newer; this is {torch.__version__}")
    same_start(mesh.samples, [*model.named_parameters(), *model.named_buffers()])
    before = dict(model.named_parameters())
    along: Any = mesh["data", "shard"] if mesh.layout.data > 1 else mesh["shard"]
    for unit in [*units(model), model]:
        if not whole_between:
            unit.register_forward_hook(_without_views)
        fully_shard(unit, mesh=along, reshard_after_forward=not whole_between)
        unit.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        unit.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
        unit.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
    after = dict(model.named_parameters())
    return {id(parameter): (parameter, after[name]) for name, parameter in before.items()}


def _without_views(unit: nn.Module, inputs: Any, output: Any) -> Any:
    """Copy outputs that are views: torch's hook on one is lost where somebody changes it in place."""
    return tree.map_tensors(lambda one: one.clone() if one.requires_grad and one._base is not None else one, output)


def units(model: nn.Module) -> list[nn.Module]:
    """Return the layers that are gathered by themselves: the members of lists and sequences that repeat a class.

    Only layers of several parts count, and none within another; the rest of the model is gathered as one.

    >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> len(units(nn.Sequential(nn.Linear(2, 2), block(), block())))
    2
    """
    found: list[nn.Module] = []
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or any(module in set(one.modules()) for one in found):
            continue
        blocks = [one for one in module if len(list(one.children())) and any(True for _ in one.parameters())]
        kinds = [type(one) for one in blocks]
        found += [one for one in dict.fromkeys(blocks) if kinds.count(type(one)) > 1]
    return found
