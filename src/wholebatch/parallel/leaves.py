"""What crosses from one stage of a pipeline to the next: the tensors of nested values, and the rest of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class _Slot:
    """Where a tensor was."""

    number: int


@dataclass(frozen=True)
class Leaves:
    """Nested values taken apart.

    Attributes:
        tensors: in order.
        rest: the values without their tensors; the same in every micro-batch.
    """

    tensors: tuple[Tensor, ...] = ()
    rest: Any = ()

    def on_cpu(self) -> Leaves:
        """Return them with their tensors on the CPU."""
        return Leaves(tuple(tensor.cpu() for tensor in self.tensors), self.rest)


def flat(values: Any) -> Leaves:
    """Take nested values apart; their tensors are as torch can send them."""
    tensors: list[Tensor] = []

    def slot(tensor: Tensor) -> _Slot:
        tensors.append(tensor.contiguous())
        return _Slot(len(tensors) - 1)

    rest = pytree.tree_map_only(Tensor, slot, values)
    return Leaves(tuple(tensors), rest)


def rebuilt(tensors: Sequence[Tensor], like: Leaves) -> Any:
    """Put ``tensors`` together as ``like`` was."""
    return pytree.tree_map_only(_Slot, lambda slot: tensors[slot.number], like.rest)


def received(tensor: Tensor) -> Tensor:
    """Return a copy of what came from another stage, whose gradient is given back contiguous."""
    copy = tensor.clone()
    if copy.requires_grad:
        copy.register_hook(Tensor.contiguous)
    return copy
