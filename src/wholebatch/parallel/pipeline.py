"""A model cut into stages, one or several in each process, as an engine: who has what, and how it is summed.

Every process starts with the whole model. When the first window shows what a micro-batch looks like, the model is cut;
each process then keeps the weights of its stages, and of the others a single number in the right shape, so that names,
shapes and the optimizer's groups stay those of the whole model. ``whole()`` brings everything together for a while.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from wholebatch.core.errors import ConfigError, InputError, nearest
from wholebatch.core.processes import Processes
from wholebatch.parallel.mesh import Layout, Mesh, mesh_of
from wholebatch.parallel.pipeline_passes import PipelinePasses
from wholebatch.step.over_processes import Totals, add_totals, kind_of, sum_gradients

ONE_STAGE = ("gpipe", "1f1b")
LOOPED = ("interleaved1f1b", "loopedbfs", "interleavedzerobubble")
IN_ROUNDS = ("interleaved1f1b", "interleavedzerobubble")  # of as many micro-batches as there are processes
V_SHAPED = ("zbvzerobubble", "dualpipev")
SCHEDULES = (*ONE_STAGE, *LOOPED, *V_SHAPED)


def pipeline_of(
    layout: Layout, said: Mapping[str, Any], name: str, model: nn.Module | None, here: Processes
) -> PipelineEngine:
    """Return the engine that ``parallel=`` with ``pipeline`` means; see :func:`asked` for what is refused."""
    schedule, cuts = asked(layout, said, name)
    device = next((p.device.type for p in model.parameters()), "cpu") if model is not None else "cpu"
    return PipelineEngine(mesh_of(layout, here, device), schedule, cuts)


def asked(layout: Layout, said: Mapping[str, Any], name: str) -> tuple[str, list[str] | None]:
    """Return the schedule and the cuts that ``said`` asks for.

    Raises:
        ConfigError: an unknown schedule, another number of cuts than it needs, or what a pipeline does not go with.
    """
    for key in ("shard", "tensor"):
        if getattr(layout, key) > 1:
            raise ConfigError(
                f"parallel: pipeline={layout.pipeline} with {key}={getattr(layout, key)} is not available in this "
                "version; a pipeline goes with data alone"
            )
    if name not in ("auto", "flat"):
        raise ConfigError(f"parallel: engine={name!r} does not go with a pipeline; leave it out")
    schedule = str(said.get("schedule") or "1f1b").lower()
    if schedule not in SCHEDULES:
        hint = nearest(schedule, SCHEDULES)
        raise ConfigError(f"parallel: schedule={said['schedule']!r}; expected one of {', '.join(SCHEDULES)}{hint}")
    stages = layout.pipeline * (1 if schedule in ONE_STAGE else 2)
    cuts = said.get("cuts")
    cuts = None if cuts is None else [cuts] if isinstance(cuts, str) else list(cuts)
    if cuts is not None and len(cuts) != stages - 1:
        raise ConfigError(
            f"parallel: cuts={cuts} make {len(cuts) + 1} stages, but pipeline={layout.pipeline} with the schedule "
            f"{schedule} has {stages}; name {stages - 1} modules, each the first of a stage"
        )
    return schedule, cuts


class PipelineEngine:
    """Sums what the stages of a pipeline come to (:class:`wholebatch.step.engine.Engine`).

    Attributes:
        processes: all of them; ``samples`` are those that share the samples of a batch.
        schedule: torch's name of it, in lower case.
        cuts: the modules that begin a stage; None until they are measured.
    """

    overlaps = False
    sums_alone = False
    world: Processes | None = None
    lockstep = stands_in = False

    def __init__(self, mesh: Mesh, schedule: str, cuts: Sequence[str] | None) -> None:
        self.mesh, self.schedule = mesh, schedule
        self.processes, self.samples = mesh.world, mesh.samples
        self.pipe, self.data = mesh.along("pipeline"), mesh.along("data")
        self.cuts = None if cuts is None else list(cuts)
        per_process = 1 if schedule in ONE_STAGE else 2
        self.count = self.pipe.size * per_process
        self.own = [stage for stage in range(self.count) if self.process_of(stage) == self.pipe.rank]
        self._parameters: Sequence[Tensor] = ()
        self._modules: Sequence[nn.Module] = ()  # the model, and the loss where it is a module
        self._owners: list[list[int]] = []  # of each, the processes of the pipeline that have it
        self._optimizer: Optimizer | None = None
        self._whole = True

    def process_of(self, stage: int) -> int:
        """Return the process of the pipeline that has a stage."""
        size = self.pipe.size
        turn, place = divmod(stage, size)
        return size - 1 - place if self.schedule in V_SHAPED and turn % 2 else place

    def micro_batches(self, number: int) -> int:
        """Return how many micro-batches the schedule takes, where a window has ``number``; the rest are empty."""
        number = max(number, self.count)
        return -(-number // self.pipe.size) * self.pipe.size if self.schedule in IN_ROUNDS else number

    def passes(self, *arguments: Any, **options: Any) -> PipelinePasses:
        """Return what runs the micro-batches of a step."""
        return PipelinePasses(self, *arguments, **options)

    # the step's sums ---------------------------------------------------------------------------------

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Keep the parameters; what ``gather`` brought together is this process's part again."""
        self._parameters = parameters
        if self._whole and self._owners:
            self._empty()

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Refuse a backward of one's own: torch's schedule runs it, between the stages.

        Raises:
            InputError: always; :class:`wholebatch.GradientAccumulator` with this engine would call it.
        """
        raise InputError(
            "in a pipeline no process has a whole backward pass, so only Step and train can run it; give this engine "
            "to Step, or another one to the GradientAccumulator"
        )

    def own_norm(self) -> Tensor | None:
        """Return None: no process has the gradient of a whole micro-batch."""
        return None

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Sum the totals of the last stages, then every stage's gradients over the processes that have it."""
        kinds = [kind_of(parameter.grad) for parameter in self._parameters]
        if self.count - 1 not in self.own:
            own = Totals(0.0, 0.0, 0, 0)  # the last stage counts
        whole, kinds = add_totals(self.processes, own, kinds, error)
        if whole.samples == 0 or not self._owners:
            return whole
        owners = self._owners_by_id()
        here = [
            (parameter, kind)
            for parameter, kind in zip(self._parameters, kinds, strict=True)
            if self.pipe.rank in owners.get(id(parameter), [0])
        ]
        sum_gradients(self.data, [parameter for parameter, _ in here], [kind for _, kind in here])
        for parameter, kind in zip(self._parameters, kinds, strict=True):
            if kind != "none" and len(owners.get(id(parameter), [0])) > 1:
                mine = parameter.grad is not None
                gradient = parameter.grad if mine else torch.zeros(parameter.shape, dtype=parameter.dtype)
                assert gradient is not None
                self.pipe.sum_(gradient)
        return whole

    def _owners_by_id(self) -> dict[int, list[int]]:
        return {id(tensor): owners for tensor, owners in zip(self._tensors, self._owners, strict=True)}

    def agree(self, gradients: Sequence[Tensor], finite: bool) -> tuple[Tensor, bool]:
        """Return the norm of the gradients of all stages, and whether all are finite; all processes call it."""
        owners = self._owners_by_id()
        counted = {
            id(p.grad) for p in self._parameters if min(owners.get(id(p), [0])) == self.pipe.rank and p.grad is not None
        }
        square = torch.zeros((), dtype=torch.float64)
        for gradient in gradients:
            if id(gradient) in counted:
                parts = gradient.values() if gradient.is_sparse else gradient
                square += torch.linalg.vector_norm(parts).to(square) ** 2
        sums = self.pipe.sum_(torch.stack([square, torch.tensor(float(not finite), dtype=torch.float64)]))
        return sums[0].sqrt(), not sums[1]

    # who has what ------------------------------------------------------------------------------------

    def tensors_of(self, modules: Sequence[nn.Module]) -> list[Tensor]:
        """Return all parameters and buffers, each once, in an order that is the same in every process."""
        found = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return list({id(tensor): tensor for tensor in found}.values())

    @property
    def _tensors(self) -> list[Tensor]:
        return self.tensors_of(self._modules)  # anew, since a module may replace its buffers

    def divide(self, modules: Sequence[nn.Module], owners: Sequence[Sequence[int]], optimizer: Optimizer) -> None:
        """Keep of the tensors of ``modules`` what this process owns; ``owners``, of each, are of the pipeline."""
        self._modules, self._owners, self._optimizer = modules, [list(have) or [0] for have in owners], optimizer
        self._empty()

    def _empty(self) -> None:
        """Give back the memory of what other stages have."""
        for tensor, owners in zip(self._tensors, self._owners, strict=True):
            if self.pipe.rank not in owners:
                _hollow(tensor)
                if self._optimizer is not None:
                    self._optimizer.state.pop(tensor, None)
        self._whole = False

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it every process has the whole model and the optimizer's whole state; all processes call it."""
        if self._whole:
            yield
            return
        self.gather()
        try:
            yield
        finally:
            self._empty()

    def gather(self) -> None:
        """Give every process the whole model and the optimizer's whole state; all processes call it."""
        if self._whole:
            return
        for tensor, owners in zip(self._tensors, self._owners, strict=True):
            if self.pipe.rank not in owners:
                tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            data = tensor.detach().contiguous()
            distributed.broadcast(data, group=self.pipe.group, group_src=owners[0])
            if data.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(data)
        self._fill_optimizer()
        self._whole = True

    def _fill_optimizer(self) -> None:
        assert self._optimizer is not None
        tensors = self._tensors
        numbers = {id(tensor): number for number, tensor in enumerate(tensors)}
        state = {numbers[id(tensor)]: of for tensor, of in self._optimizer.state.items() if id(tensor) in numbers}
        mine = {number: of for number, of in state.items() if self._owners[number][0] == self.pipe.rank}
        for rank, theirs in enumerate(self.pipe.gather(mine)):
            for number, of in theirs.items():
                if rank != self.pipe.rank and self.pipe.rank not in self._owners[number]:
                    self._optimizer.state[tensors[number]] = of

    def share_buffers(self) -> None:
        """Make every stage's buffers those of the first process that has them; all processes call it."""
        for tensor, owners in zip(self._tensors, self._owners, strict=True):
            if not isinstance(tensor, nn.Parameter) and self.pipe.rank in owners:
                self.data.copy_from_first_(tensor)


def _hollow(tensor: Tensor) -> None:
    """Leave one number of a tensor's memory: NaN, where there is one, so that a use shows."""
    floating = tensor.is_floating_point() or tensor.is_complex()
    one = torch.full((), float("nan") if floating else 0, dtype=tensor.dtype, device=tensor.device)
    tensor.data = one.expand(tensor.shape)
