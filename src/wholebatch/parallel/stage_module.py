"""A stage as the module that torch calls, and what torch needs where gradients of weights come after those of values.

Schedules without bubbles want that. Torch looks for the weights on the ways from a stage's results to the values that
entered it. A weight that is on none of them, since a result hangs on weights alone, would be left without a gradient,
and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.parallel.leaves import Leaves
from wholebatch.parallel.stages import Stage

SPLIT_BACKWARD = ("interleavedzerobubble", "zbvzerobubble", "dualpipev")


class StageModule(nn.Module):
    """What torch calls: it has the stage's modules and parameters.

    Args:
        run: what runs a stage on one micro-batch, of that number.
        stage: the stage.
        loss: its module, whose weights are the last stage's; None where it has none.
        splits: whether the schedule takes the gradients of values and of weights one after the other.
    """

    def __init__(
        self, run: Callable[[Stage, Sequence[Tensor], int], Any], stage: Stage, loss: nn.Module | None, splits: bool
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(stage.part.modules())
        self.loss = loss if stage.last else None
        own = {id(parameter) for parameter in self.parts.parameters()}
        fetched = [t for t in stage.part.tensors() if isinstance(t, nn.Parameter) and id(t) not in own]
        self.fetched = nn.ParameterList(fetched)
        self._run, self._stage, self._splits = run, stage, splits

    def forward(self, *args: Tensor, number: Tensor) -> Any:
        """Run the stage on micro-batch ``number``; ``args`` came from the stage before it."""
        result = self._run(self._stage, args, int(number))
        return _joined(args, result) if self._splits else result


def _joined(entered: Sequence[Tensor], result: Any) -> Any:
    """Return a stage's result, every tensor of which hangs on a value that entered, with a gradient of nothing."""
    anchor = next((tensor for tensor in entered if tensor.requires_grad), None)
    if anchor is None:
        return result
    tensors = (result,) if isinstance(result, Tensor) else result
    hanging = iter(_Joined.apply(anchor, *(tensor for tensor in tensors if tensor.requires_grad)))
    found = tuple(next(hanging) if tensor.requires_grad else tensor for tensor in tensors)
    return found[0] if isinstance(result, Tensor) else found


def weights_at_once(entering: Leaves) -> Callable[[], Callable[[], None]] | None:
    """Return torch's ``dw_builder`` for a stage that no value with a gradient enters; None for others.

    With it weights have their gradients when values have theirs, and nothing is left to do later.
    """
    return None if any(tensor.is_floating_point() for tensor in entering.tensors) else lambda: lambda: None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        return None, *gradients
