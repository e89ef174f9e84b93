"""Whole batches in an order that is a function of seed and epoch, resumed by two numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from wholebatch.core import processes, tree
from wholebatch.core.errors import DataError
from wholebatch.data.adapt import as_dataset, has_random_access
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.checks import positive, restore_place
from wholebatch.data.mix import Mix
from wholebatch.data.order import epoch_order
from wholebatch.data.transform import Transform, finisher
from wholebatch.data.window import Window

# Below this many bytes a whole batch is gathered by one index per tensor and cut into views, which saves a
# fifth of the cost at 64 KiB; above it, gathering per micro-batch is as fast or faster (half the time where
# the caches end) and keeps one micro-batch in memory instead of all.
AT_ONCE_BYTES = 1 << 19


class BatchLoader:
    """Whole batches of a data set with random access.

    ``for batch in loader`` gives the batches from the current place to the end of the current epoch; the next ``for``
    gives the next epoch. The order of an epoch depends on (seed, epoch) alone (:func:`epoch_order`), batch
    *t* is its *t*-th slice, the last one may be short. A batch that was handed out counts as consumed, so a
    ``for`` that was left by ``break`` is continued by the next ``for`` behind the batch it had in hand; likewise a
    loader that takes over the state.

    Data in memory (:class:`ArrayDataset`, or what :func:`as_dataset` makes one) are indexed as tensors; the
    samples of any other data set are fetched one by one and collated.

    Args:
        dataset: anything :func:`as_dataset` takes that has random access.
        batch_size: samples of a whole batch; more than there are samples gives one short batch.
        seed: with the epoch, it decides the order and what ``transform`` draws.
        shuffle: False keeps the data set's order.
        drop_last: leave a short last batch out.
        transform: applied to every micro-batch (:class:`Transform`); None is the data set's own (of an
            ``ArrayDataset``), ``Compose()`` is none at all.
        collate: makes a batch of a list of samples; data in memory are then fetched one by one, too.
        mix: mixes every sample with another of its whole batch, after ``transform``: MixUp or CutMix.
        group: torch.distributed's process group. Each process gets its contiguous part of every whole batch, in rank
            order; ``batch_size`` is that of the whole.

    Raises:
        DataError: a ``batch_size`` below 1, no samples, no random access, or ``drop_last`` leaves no batch.
        InputTypeError: a ``batch_size`` that is no whole number, or a data set that is none.

    >>> loader = BatchLoader((torch.arange(5), torch.arange(5)), 2, shuffle=False)
    >>> [inputs.tolist() for inputs, targets in loader], loader.state_dict()["epoch"]
    ([[0, 1], [2, 3], [4]], 1)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Transform | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        mix: Mix | None = None,
        group: Any = None,
    ) -> None:
        self._processes = processes.current(group)
        self.batch_size = positive("batch_size", batch_size)
        self.dataset = as_dataset(dataset)
        if not has_random_access(self.dataset):
            raise DataError(
                f"BatchLoader needs a data set with random access (__len__ and __getitem__), got a "
                f"{type(dataset).__name__}; use wholebatch.data.StreamLoader, whose order and resuming are weaker"
            )
        self.samples = len(self.dataset)
        if self.samples == 0:
            raise DataError(f"the data set is empty: len({type(dataset).__name__}) is 0")
        if drop_last and self.samples < self.batch_size:
            raise DataError(
                f"drop_last leaves nothing: {self.samples} samples make no whole batch of {self.batch_size}; "
                "lower batch_size or keep the short batch"
            )
        self.seed, self.shuffle, self.drop_last, self.mix = seed, shuffle, drop_last, mix
        in_memory = isinstance(self.dataset, ArrayDataset)
        self.transform = self.dataset.transform if transform is None and in_memory else transform
        self._collate = collate or default_collate
        self._take = self.dataset.take if in_memory and collate is None else self._take_singly
        self._at_once = in_memory and collate is None and self._small()
        self._epoch, self._consumed = 0, 0

    @property
    def epoch(self) -> int:
        """The current epoch, from 0; it rises when a ``for`` reaches its end."""
        return self._epoch

    @property
    def consumed(self) -> int:
        """How many samples of the current epoch were handed out."""
        return self._consumed

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        return (window.whole() for window in self.windows())

    def windows(self, micro_batch: int | None = None, device: torch.device | str | None = None) -> Iterator[Window]:
        """Iterate as ``for batch in loader`` does, but give each batch as a :class:`Window` of micro-batches.

        Args:
            micro_batch: samples that one forward sees, or None for all.
            device: where micro-batches go before they are transformed; None leaves them where the data are.
        """
        size = None if micro_batch is None else positive("micro_batch", micro_batch)
        return self._windows(size, device)

    def _windows(self, micro_batch: int | None, device: torch.device | str | None) -> Iterator[Window]:
        epoch = self._epoch
        order = epoch_order(self.samples, self.seed, epoch) if self.shuffle else torch.arange(self.samples)
        finish = finisher(self.transform, self.seed, epoch, device)
        take = self._take
        least = self.batch_size if self.drop_last else 1
        while self._epoch == epoch and self.samples - self._consumed >= least:
            indices = order[self._consumed : self._consumed + self.batch_size]
            plan = None
            if self.mix is not None:
                plan = self.mix.plan(indices, seed=self.seed, epoch=epoch, place=self._consumed)
            self._consumed += indices.shape[0]
            first, stop = self._part(indices.shape[0])
            indices = indices[first:stop]
            if self.mix is not None and plan is not None:
                mixed = self.mix.gathering(indices, plan.part(first, stop), take, finish)
                yield Window(mixed, indices, epoch, micro_batch, position=first)
                continue

            def gather(start: int, stop: int, indices: Tensor = indices) -> Any:
                return take(indices[start:stop])

            yield Window(gather, indices, epoch, micro_batch, self._at_once, finish, first)
        if self._epoch == epoch:
            self._epoch, self._consumed = epoch + 1, 0

    def _part(self, samples: int) -> tuple[int, int]:
        """The part of a whole batch that is this process's: contiguous, in rank order, as even as can be."""
        rank, size = self._processes.rank, self._processes.size
        return samples * rank // size, samples * (rank + 1) // size

    def _small(self) -> bool:
        return self.dataset.bytes_per_sample * min(self.batch_size, self.samples) <= AT_ONCE_BYTES

    def _take_singly(self, indices: Tensor) -> Any:
        """Fetch samples one by one (or by the data set's own ``__getitems__``) and collate them."""
        numbers = indices.tolist()
        if not numbers:  # a process without a part of a short batch
            return tree.cut(self._take_singly(torch.zeros(1, dtype=torch.int64)), 0, 0, 1)
        fetch = getattr(self.dataset, "__getitems__", None)
        samples = fetch(numbers) if callable(fetch) else [self.dataset[number] for number in numbers]
        try:
            return self._collate(samples)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"samples of {type(self.dataset).__name__} could not be put into one batch: {error}; "
                "let the data set give tensors of one shape, or pass collate="
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Return the place (epoch, consumed) and what the order depends on (seed, samples, shuffle)."""
        return {"epoch": self._epoch, "consumed": self._consumed, **self._guard()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of ``state``; a running ``for`` ends where the epoch changes.

        Raises:
            DataError: it is no such state, or one of a loader with another order.
        """
        self._epoch, self._consumed = restore_place(state, self._guard())

    def _guard(self) -> dict[str, Any]:
        return {"seed": self.seed, "samples": self.samples, "shuffle": self.shuffle}

    def __repr__(self) -> str:
        return f"BatchLoader({self.samples} samples in batches of {self.batch_size}, seed={self.seed})"
