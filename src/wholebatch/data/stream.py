"""Data without random access: the order is the source's own, and so is what resuming can promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, default_collate

from wholebatch.core import tree
from wholebatch.core.cuts import Parting
from wholebatch.core.errors import DataError
from wholebatch.data.adapt import as_dataset
from wholebatch.data.checks import positive, restore_place
from wholebatch.data.same_stream import SameStream, samples_of
from wholebatch.data.transform import Transform, finisher
from wholebatch.data.whole_batches import WholeBatches
from wholebatch.data.window import Window


class StreamLoader(WholeBatches):
    """Whole batches of an iterable data set or of a ``DataLoader``, with a weaker promise than :class:`BatchLoader`.

    - The order is the source's own; ``set_epoch(epoch)`` of the source, its data set or its sampler is called where it
      exists.
    - The state is the epoch alone: a run that was interrupted starts that epoch anew.
    - A whole batch is in memory at once; its micro-batches are cut from it.
    - Every process reads the whole stream, and takes its part of every batch.
    - What a transform draws is keyed by a sample's place in the stream.

    Args:
        source: an iterable of samples, or a ``DataLoader``, whose batches are the whole batches.
        batch_size: samples of a whole batch. For a ``DataLoader`` it may be None, and must agree with its own
            where that has one.
        seed: decides what ``transform`` draws.
        transform: see :class:`BatchLoader`.
        collate: makes a batch of a list of samples; a ``DataLoader`` has its own.
        group: torch.distributed's process group.

    Raises:
        DataError: no batch size, another one than the ``DataLoader``'s, or (when read) no samples.
    """

    def __init__(
        self,
        source: Any,
        batch_size: int | None = None,
        *,
        seed: int = 0,
        transform: Transform | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        group: Any = None,
    ) -> None:
        super().__init__(group)
        self.dataset = as_dataset(source)
        self.batch_size = None if batch_size is None else positive("batch_size", batch_size)
        self.seed, self.transform = seed, transform
        self.compares = False
        """Whether the processes compare the batches that they have read, in a small exchange for each; in training."""
        self._same = SameStream()
        self._collate = collate or default_collate
        if not isinstance(source, DataLoader):
            if self.batch_size is None:
                raise DataError(f"how many samples of {type(source).__name__} make a batch? say batch_size")
            return
        if collate is not None:
            raise DataError("a DataLoader has its own collate_fn; pass collate there")
        if self._processes.size > 1 and isinstance(source.sampler, DistributedSampler):
            raise DataError(
                "this DataLoader has a DistributedSampler, which repeats samples to even the processes out; leave the "
                "sampler out: the whole batches are split over the processes here"
            )
        own = source.batch_size
        if own is not None and self.batch_size is not None and own != self.batch_size:
            raise DataError(
                f"batch_size is {self.batch_size}, but the DataLoader makes batches of {own}, and its batches are the "
                "whole batches; give it that batch_size, or give its data set instead"
            )
        self.batch_size = own or self.batch_size

    @property
    def samples(self) -> int | None:
        """The number of samples of an epoch, or None where only reading tells."""
        source = self.dataset
        if isinstance(source, DataLoader):
            if source.batch_size is None or source.drop_last or isinstance(source.dataset, IterableDataset):
                return None
            source = source.sampler
        try:
            return len(source)
        except TypeError:
            return None

    def __len__(self) -> int:
        """Return the number of batches of an epoch.

        Raises:
            TypeError: only reading tells, as for any iterable.
        """
        if isinstance(self.dataset, DataLoader):
            return len(self.dataset)
        if self.samples is None or self.batch_size is None:
            raise TypeError(f"the length of {type(self.dataset).__name__} is known only by reading it")
        return -(-self.samples // self.batch_size)

    def _windows(
        self, micro_batch: int | None, device: torch.device | str | None, parting: Parting
    ) -> Iterator[Window]:
        epoch, seen = self._epoch, 0
        finish = finisher(self.transform, self.seed, epoch, device)
        self._announce(epoch)
        rank, size = self._processes.rank, self._processes.size
        batches = self._batches()
        if self.compares and self._processes.size > 1:
            batches = self._same.same(batches, self._processes)
        for batch in batches:
            samples = samples_of(batch)
            edges = parting.edges(samples, rank, size)
            first, last = edges[0], edges[-1]
            place: dict[str, Any] = {"whole": samples, "edges": [edge - first for edge in edges]}
            place |= {"align": parting.align, "rest_of_one": parting.rest_of_one}

            def gather(start: int, stop: int, batch: Any = batch, samples: int = samples, first: int = first) -> Any:
                return batch if stop - start == samples else tree.cut(batch, first + start, first + stop, samples)

            indices = torch.arange(seen + first, seen + last)
            seen += samples
            yield Window(gather, indices, epoch, micro_batch, finish=finish, position=first, **place)
        if not seen:
            raise DataError(f"the data set is empty: {type(self.dataset).__name__} gave nothing in epoch {epoch}")
        if self._epoch == epoch:
            self._epoch = epoch + 1

    def _batches(self) -> Iterator[Any]:
        if isinstance(self.dataset, DataLoader):
            yield from self.dataset
            return
        samples = iter(self.dataset)
        while group := list(islice(samples, self.batch_size)):
            try:
                batch = self._collate(group)
            except (TypeError, RuntimeError) as error:
                raise DataError(
                    f"samples of {type(self.dataset).__name__} could not be put into one batch: {error}; pass collate="
                ) from error
            yield batch

    def _announce(self, epoch: int) -> None:
        """Tell the source which epoch begins, as torch's DistributedSampler and others wish."""
        for part in (self.dataset, *(getattr(self.dataset, name, None) for name in ("dataset", "sampler"))):
            tell = getattr(part, "set_epoch", None)
            if callable(tell):
                tell(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"epoch": ...}``; the place within an epoch is the source's and not known here."""
        return {"epoch": self._epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the beginning of the epoch of ``state``.

        Raises:
            DataError: it is no such state.
        """
        self._epoch, _ = restore_place(state, {})

    def close(self) -> None:
        """Do nothing: what a source started is its own to end."""

    def __repr__(self) -> str:
        return f"StreamLoader({type(self.dataset).__name__}, batch_size={self.batch_size})"
