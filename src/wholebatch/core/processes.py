"""Who shares the work: everything that adds over processes sees them through :class:`Processes`.

``Alone`` is the one-process stand-in that does nothing, so that no code asks ``if distributed``.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from wholebatch.core.errors import InputError


class Processes(Protocol):
    """The processes that share one batch, in rank order."""

    rank: int
    size: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """Add ``tensor`` over all processes, in place."""
        ...

    def samples_before(self, samples: int) -> int:
        """Return how many samples the processes of lower rank hold; all processes must call it."""
        ...


class Alone:
    """One process: its sums are the sums of all."""

    rank = 0
    size = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        """Return ``tensor`` as it is."""
        return tensor

    def samples_before(self, samples: int) -> int:
        """Return 0."""
        return 0


def current(group: Any = None) -> Processes:
    """Return the processes of ``group``, or of torch.distributed's default group where one is initialised.

    Raises:
        InputError: there are several; this version serves one process.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1:
        raise InputError(
            f"a process group of {distributed.get_world_size(group)} processes is initialised, but this version of "
            "wholebatch adds sums within one process only; run it without torchrun"
        )
    return Alone()
