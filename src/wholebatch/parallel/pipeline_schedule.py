"""Torch's schedule of a pipeline: in which order a process runs its stages on the micro-batches of a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wholebatch.parallel.leaves import Leaves
from wholebatch.parallel.stage_module import SPLIT_BACKWARD, StageModule, weights_at_once
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
        loss: its module, whose weights are the last stage's; None where it has none.
        upstream: ``upstream()`` is what backward begins with: what every gradient is multiplied by.
    """

    def __init__(
        self,
        engine: PipelineEngine,
        device: torch.device,
        forward: Forward,
        loss: nn.Module | None,
        upstream: Callable[[], float],
    ) -> None:
        self._engine, self._device, self._forward = engine, device, forward
        self._loss, self._upstream = loss, upstream
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

        engine, splits = self._engine, self._engine.schedule in SPLIT_BACKWARD
        scalar = torch.zeros((), device=self._device, requires_grad=True)
        stages = [
            PipelineStage(
                StageModule(self._forward, stage, self._loss, splits),
                stage.number,
                engine.count,
                self._device,
                input_args=(torch.arange(1),) if stage.number == 0 else _like(stage.entering),
                output_args=(scalar,) if stage.last else _like(stage.leaving),
                group=engine.pipe.group,
                dw_builder=weights_at_once(stage.entering) if splits else None,
            )
            for stage in own
        ]
        kind = get_schedule_class(engine.schedule)
        given = stages[0] if issubclass(kind, PipelineScheduleSingle) else stages
        return kind(given, number, loss_fn=self._scaled, scale_grads=False)

    def _scaled(self, loss_sum: Tensor, target: Tensor) -> Tensor:
        return loss_sum * self._upstream()


def _like(leaves: Leaves) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in leaves.tensors)
