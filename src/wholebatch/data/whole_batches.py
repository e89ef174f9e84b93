"""What every loader gives: whole batches, epoch after epoch, of which each process has its part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch

from wholebatch.core.cuts import Parting
from wholebatch.core.processes import Processes, current
from wholebatch.data.checks import positive
from wholebatch.data.window import Window


class WholeBatches(ABC):
    """Base of the loaders: where the epochs and the processes are known, and a batch is a window of micro-batches.

    Args:
        group: torch.distributed's process group.
        align: the parts of the processes, and micro-batches, are cut at multiples of it.
    """

    def __init__(self, group: Any, align: int = 1) -> None:
        self._processes: Processes = current(group)
        self.align = positive("align", align)
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """The current epoch, from 0; it rises when a ``for`` reaches its end."""
        return self._epoch

    def share(self, those: Processes) -> None:
        """Give each of ``those`` processes its part of every batch from now on."""
        self._processes = those

    def __iter__(self) -> Iterator[Any]:
        return (window.whole() for window in self.windows())

    def windows(
        self,
        micro_batch: int | None = None,
        device: torch.device | str | None = None,
        align: int | None = None,
        rest_of_one: bool = False,
        logical: int | None = None,
    ) -> Iterator[Window]:
        """Iterate as ``for batch in loader`` does, but give each batch as a :class:`Window` of micro-batches.

        Args:
            micro_batch: samples that one forward sees, or None for all.
            device: where micro-batches go before they are transformed; None leaves them where the data are.
            align: in place of the loader's own.
            rest_of_one: a last micro-batch, or a process's part, may be one sample that is left, as bitwise mode cuts;
                otherwise one is spared.
            logical: cut every batch into the parts of so many logical workers, and give this process whole ones
                (:func:`wholebatch.core.cuts.worker_edges`); None cuts by the number of processes alone.
        """
        size = None if micro_batch is None else positive("micro_batch", micro_batch)
        aligned = self.align if align is None else positive("align", align)
        return self._windows(size, device, Parting(aligned, rest_of_one, logical))

    @abstractmethod
    def _windows(
        self, micro_batch: int | None, device: torch.device | str | None, parting: Parting
    ) -> Iterator[Window]:
        """The windows from the current place to the end of the current epoch."""
