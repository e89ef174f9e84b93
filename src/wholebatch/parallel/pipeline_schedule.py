"""Torch's schedule of a pipeline: in which order a process runs its stages on the micro-batches of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wholebatch.parallel.leaves import Leaves
from wholebatch.parallel.stages import Stage

if TYPE_CHECKING:
    from wholebatch.parallel.pipeline import PipelineEngine

_KEPT = 4  # schedules, for so many different numbers of micro-batches

Forward = Callable[[Stage, Sequence[Tensor], int], Any]


class Schedules:
    """Torch's schedules for this process's stages, one for every number of micro-batches, which has buffers for each.

    Args:
        engine: says which schedule, and who has which stage.
        device: of the model.
        forward: ``forward(stage, args, number)`` runs a stage on the micro-batch of that number.
        upstream: ``upstream()`` is what backward begins with: what every gradient is multiplied by.
    """

    def __init__(
        self, engine: PipelineEngine, device: torch.device, forward: Forward, upstream: Callable[[], float]
    ) -> None:
        self._engine, self._device, self._forward, self._upstream = engine, device, forward, upstream
        self._kept: dict[int, Any] = {}

    def clear(self) -> None:
        """Forget all of them: the stages are made anew."""
        self._kept.clear()

    def of(self, number: int, stages: Sequence[Stage]) -> Any:
        """Return torch's schedule for so many micro-batches through ``stages``, the same until :meth:`clear`."""
        if number not in self._kept:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self._new(number, stages)
        return self._kept[number]

    def _new(self, number: int, own: Sequence[Stage]) -> Any:
        from torch.distributed.pipelining import PipelineStage
        from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

        engine = self._engine
        scalar = torch.zeros((), device=self._device, requires_grad=True)
        stages = [
            PipelineStage(
                _StageModule(self._forward, stage),
                stage.number,
                engine.count,
                self._device,
                input_args=(torch.arange(1),) if stage.number == 0 else _like(stage.entering),
                output_args=(scalar,) if stage.last else _like(stage.leaving),
                group=engine.pipe.group,
            )
            for stage in own
        ]
        kind = get_schedule_class(engine.schedule)
        given = stages[0] if issubclass(kind, PipelineScheduleSingle) else stages
        return kind(given, number, loss_fn=self._scaled, scale_grads=False)

    def _scaled(self, loss_sum: Tensor, target: Tensor) -> Tensor:
        return loss_sum * self._upstream()


class _StageModule(nn.Module):
    """What torch calls: it has the stage's modules and parameters."""

    def __init__(self, run: Forward, stage: Stage) -> None:
        super().__init__()
        self.parts = nn.ModuleList(stage.part.modules())
        own = {id(parameter) for parameter in self.parts.parameters()}
        fetched = [t for t in stage.part.tensors() if isinstance(t, nn.Parameter) and id(t) not in own]
        self.fetched = nn.ParameterList(fetched)
        self._run = run
        self._stage = stage

    def forward(self, *args: Tensor, number: Tensor) -> Any:
        return self._run(self._stage, args, int(number))


def _like(leaves: Leaves) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in leaves.tensors)
