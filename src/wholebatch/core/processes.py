"""Who shares the work: everything that adds over processes sees them through :class:`Processes`.

``Alone`` is one process: its sums are the sums of all, and it waits for nobody, so that no code asks
``if distributed``. ``Group`` is torch.distributed's. Every method of it is collective: all processes call
it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, distributed


class Pending(Protocol):
    """A sum that is under way."""

    def wait(self) -> Any:
        """Return when the tensor holds the sum."""
        ...


@runtime_checkable
class Processes(Protocol):
    """The processes that share one batch, in rank order."""

    rank: int
    size: int
    group: Any
    """torch.distributed's process group, or None for its default one."""

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` over all processes, in place."""
        ...

    def begin_sum_(self, tensor: Tensor) -> Pending:
        """Begin to add ``tensor`` over all processes, in place."""
        ...

    def copy_from_first_(self, tensor: Tensor) -> None:
        """Make ``tensor`` on every process what it is on rank 0, in place."""
        ...

    def exchange(self, number: int) -> list[int]:
        """Return every process's ``number``, in rank order."""
        ...

    def gather(self, item: Any) -> list[Any]:
        """Return every process's ``item`` (small, picklable), in rank order."""
        ...


class _Done:
    def wait(self) -> None:
        """Return at once."""


class _Elsewhere:
    """A sum of what was moved to another device for it."""

    def __init__(self, work: Pending, moved: Tensor, tensor: Tensor) -> None:
        self._work, self._moved, self._tensor = work, moved, tensor

    def wait(self) -> None:
        """Return when the sum is where the tensor was."""
        self._work.wait()
        self._tensor.copy_(self._moved)


class Alone:
    """One process."""

    rank = 0
    size = 1
    group = None

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` as it is."""
        return tensor

    def begin_sum_(self, tensor: Tensor) -> Pending:
        """Return what need not be waited for."""
        return _Done()

    def copy_from_first_(self, tensor: Tensor) -> None:
        """Do nothing."""

    def exchange(self, number: int) -> list[int]:
        """Return ``[number]``."""
        return [number]

    def gather(self, item: Any) -> list[Any]:
        """Return ``[item]``."""
        return [item]


class Group:
    """The processes of a torch.distributed process group."""

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)
        on_gpu = str(distributed.get_backend(group)) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` over all processes, in place; it may lie on any device."""
        if tensor.device.type == self._device.type:
            distributed.all_reduce(tensor, group=self.group)
            return tensor
        moved = tensor.to(self._device)
        distributed.all_reduce(moved, group=self.group)
        return tensor.copy_(moved)

    def begin_sum_(self, tensor: Tensor) -> Pending:
        """Begin to add ``tensor`` over all processes, in place; it may lie on any device."""
        moved = tensor if tensor.device.type == self._device.type else tensor.to(self._device)
        work = distributed.all_reduce(moved, group=self.group, async_op=True)
        assert work is not None
        return work if moved is tensor else _Elsewhere(work, moved, tensor)

    def copy_from_first_(self, tensor: Tensor) -> None:
        """Make ``tensor``, on any device, on every process what it is on rank 0, in place."""
        moved = tensor.detach().to(self._device).contiguous()
        distributed.broadcast(moved, group=self.group, group_src=0)
        if moved.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(moved)

    def exchange(self, number: int) -> list[int]:
        """Return every process's ``number``, in rank order."""
        numbers = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        numbers[self.rank] = number
        return [int(n) for n in self.sum_(numbers).tolist()]

    def gather(self, item: Any) -> list[Any]:
        """Return every process's ``item``, in rank order."""
        items: list[Any] = [None] * self.size
        distributed.all_gather_object(items, item, group=self.group)
        return items


_sharing: list[Processes] = []  # who shares a batch's samples, where that is not everyone


@contextmanager
def sharing_samples(those: Processes) -> Iterator[None]:
    """Within the block ``current()`` are ``those``: others work on the same samples as one of them."""
    _sharing.append(those)
    try:
        yield
    finally:
        _sharing.pop()


def current(group: Any = None) -> Processes:
    """Return the processes of ``group``, or those that share a batch's samples: torch.distributed's default group.

    A ``group`` that keeps the protocol of :class:`Processes` itself is taken as it is.
    """
    if group is None and _sharing:
        return _sharing[-1]
    return everyone(group)


def everyone(group: Any = None) -> Processes:
    """Return the processes of ``group``, or of torch.distributed's default group where one is initialised."""
    if group is not None and isinstance(group, Processes):
        return group
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1:
        return Group(group)
    return Alone()
