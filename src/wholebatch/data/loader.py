"""Whole batches in an order that is a function of seed and epoch, resumed by two numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.cuts import Parting, bounds_between
from wholebatch.core.errors import DataError
from wholebatch.data.adapt import as_dataset, has_random_access
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.checks import positive, restore_place, whole_number
from wholebatch.data.fetch import Fetch
from wholebatch.data.imageset import ImageDataset
from wholebatch.data.mix import Mix, Plan
from wholebatch.data.order import epoch_order
from wholebatch.data.transform import Transform, finisher
from wholebatch.data.whole_batches import WholeBatches
from wholebatch.data.window import Window
from wholebatch.data.workers import Place, Ready, Task, Workers

# Below this many bytes a whole batch is gathered by one index per tensor and cut into views, which saves a
# fifth of the cost at 64 KiB; above it, gathering per micro-batch is as fast or faster (half the time where
# the caches end) and keeps one micro-batch in memory instead of all.
AT_ONCE_BYTES = 1 << 19


class BatchLoader(WholeBatches):
    """Whole batches of a data set with random access.

    ``for batch in loader`` gives the batches from the current place to the end of the current epoch; the next ``for``
    gives the next epoch. The order of an epoch depends on (seed, epoch) alone (:func:`epoch_order`), batch
    *t* is its *t*-th slice, the last one may be short. A batch that was handed out counts as consumed, so a
    ``for`` that was left by ``break`` is continued by the next ``for`` behind the batch it had in hand; likewise a
    loader that takes over the state.

    Data in memory (:class:`ArrayDataset`, or what :func:`as_dataset` makes one) are indexed as tensors; the
    samples of any other data set are fetched one by one and collated, in this process or in ``workers`` others. What a
    data set draws at random from the generators of torch, NumPy and Python is keyed by (seed, epoch, sample), so that
    the batches do not depend on the number of workers.

    Workers start when they are first needed and are kept for the next epoch. They end when a ``for`` is left early or a
    sample cannot be read, with :meth:`close`, at the end of a ``with`` block, with the loader, and with the process.

    Args:
        dataset: anything :func:`as_dataset` takes that has random access.
        batch_size: samples of a whole batch; more than there are samples gives one short batch. A schedule of them: a
            mapping by epoch such as ``{0: 128, 10: 256}``, a function of the epoch, or :class:`BatchSizes`.
        seed: with the epoch, it decides the order and what ``transform`` draws.
        shuffle: False keeps the data set's order.
        drop_last: leave a short last batch out.
        transform: applied to every micro-batch (:class:`Transform`); None is the data set's own (of an
            ``ArrayDataset`` or an ``ImageDataset``), ``Compose()`` is none at all.
        collate: makes a batch of a list of samples; data in memory are then fetched one by one, too.
        mix: mixes every sample with another of its whole batch, after ``transform``: MixUp or CutMix.
        group: torch.distributed's process group. Each process gets its contiguous part of every whole batch, in rank
            order; ``batch_size`` is that of the whole.
        align: the parts are cut at multiples of it: the ``group`` of :func:`wholebatch.convert_batchnorm`, for a loop
            of one's own on several processes; ``train`` knows it.
        workers: processes that make batches ahead of time, in order; where batches go to a GPU, through pinned memory,
            and one batch ahead. 0 is this process alone. Data in memory need none and start none.

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
        batch_size: int | Mapping[int, int] | Callable[[int], int] | BatchSizes,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        transform: Transform | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
        mix: Mix | None = None,
        group: Any = None,
        workers: int = 0,
        align: int = 1,
    ) -> None:
        super().__init__(group, align)
        scheduled = isinstance(batch_size, BatchSizes | Mapping) or callable(batch_size)
        given = batch_size if scheduled else positive("batch_size", batch_size)
        self.sizes = given if isinstance(given, BatchSizes) else BatchSizes(given)
        self.batch_size = self.sizes.first
        self._latest = self.sizes.first
        self.dataset = as_dataset(dataset)
        if not has_random_access(self.dataset):
            raise DataError(
                f"BatchLoader needs a data set with random access (__len__ and __getitem__), got a "
                f"{type(dataset).__name__}; use wholebatch.data.StreamLoader, whose order and resuming are weaker"
            )
        self.samples = len(self.dataset)
        if self.samples == 0:
            raise DataError(f"the data set is empty: len({type(dataset).__name__}) is 0")
        if drop_last and self.samples < (self.sizes.largest or self.batch_size):
            raise DataError(
                f"drop_last leaves nothing: {self.samples} samples make no whole batch of "
                f"{self.sizes.largest or self.batch_size}; "
                "lower batch_size or keep the short batch"
            )
        self.seed, self.shuffle, self.drop_last, self.mix = seed, shuffle, drop_last, mix
        in_memory = isinstance(self.dataset, ArrayDataset)
        own = in_memory or isinstance(self.dataset, ImageDataset)
        self.transform = self.dataset.transform if transform is None and own else transform
        self.workers = whole_number("workers", workers, "processes")
        self._fetch = None if in_memory and collate is None else Fetch(self.dataset, collate, seed)
        self._workers = Workers(self._fetch, self.workers) if self._fetch is not None and self.workers else None
        self._at_once = self._fetch is None and self._small()
        self._consumed = 0

    @property
    def consumed(self) -> int:
        """How many samples of the current epoch were handed out."""
        return self._consumed

    def __len__(self) -> int:
        """Return the number of batches of the current epoch."""
        return self.batches_in(self._epoch)

    def batches_in(self, epoch: int) -> int:
        """Return the number of batches of an epoch, counted from 0."""
        return self.sizes.steps(epoch, self.samples, self.drop_last)

    @property
    def scheduled_size(self) -> int:
        """How many samples the batch handed out last was to have; the last one of an epoch may have fewer."""
        return self._latest

    def _windows(
        self, micro_batch: int | None, device: torch.device | str | None, parting: Parting
    ) -> Iterator[Window]:
        epoch = self._epoch
        order = epoch_order(self.samples, self.seed, epoch) if self.shuffle else torch.arange(self.samples)
        finish = finisher(self.transform, self.seed, epoch, device)
        ready = self._begin(order, micro_batch, device, parting)
        ended = False
        try:
            while self._epoch == epoch and (cut := self._next_cut()) is not None:
                begin = self._consumed
                whole = order[slice(*cut)]
                self._latest = self.sizes.at(epoch, begin, self.samples)
                self._consumed += whole.shape[0]
                yield self._window(whole, epoch, begin, micro_batch, finish, ready, parting)
            ended = True
        finally:
            if not ended:
                self.close()
        if self._epoch == epoch:
            self._epoch, self._consumed = epoch + 1, 0

    def _window(
        self,
        whole: Tensor,
        epoch: int,
        begin: int,
        micro_batch: int | None,
        finish: Callable[[Any, Tensor], Any] | None,
        ready: Ready | None,
        parting: Parting,
    ) -> Window:
        """This process's part of the whole batch of these samples, which begins at ``begin`` in the epoch."""
        edges = parting.edges(whole.shape[0], self._processes.rank, self._processes.size)
        first, stop = edges[0], edges[-1]
        place: dict[str, Any] = {"position": first, "align": parting.align, "rest_of_one": parting.rest_of_one}
        place |= {"whole": whole.shape[0], "edges": [edge - first for edge in edges]}
        indices = whole[first:stop]
        if self.mix is None:
            gather = partial(self._gather, indices, epoch, begin, ready)
            return Window(gather, indices, epoch, micro_batch, self._at_once, finish, **place)
        plan = self.mix.plan(whole, seed=self.seed, epoch=epoch, place=begin).part(first, stop)
        mixed = self.mix.gathering(indices, plan, partial(self._take, epoch, begin, ready), finish)
        return Window(mixed, indices, epoch, micro_batch, **place)

    def peek(self, samples: int, device: torch.device | str | None = None, align: int | None = None) -> tuple[Any, int]:
        """Return some samples of the first batch of this epoch, and how many of it are this process's.

        They are made as a window makes them, by this process; nothing counts as consumed.

        Args:
            samples: how many are wanted; there may be fewer.
            device: where they go before they are transformed.
            align: in place of the loader's own; as many more samples are given as reach a multiple of it.
        """
        align = self.align if align is None else positive("align", align)
        wanted = -(-samples // align) * align
        order = epoch_order(self.samples, self.seed, self._epoch) if self.shuffle else torch.arange(self.samples)
        finish = finisher(self.transform, self.seed, self._epoch, device)
        first = order[: self.sizes.at(self._epoch, 0, self.samples)]
        window = self._window(first, self._epoch, 0, wanted, finish, None, Parting(align))
        return next(iter(window), None), window.samples

    def _gather(self, indices: Tensor, epoch: int, begin: int, ready: Ready | None, start: int, stop: int) -> Any:
        """The batch of the samples ``start … stop`` of those in ``indices``."""
        return self._take(epoch, begin, ready, indices[start:stop], start, stop)

    def _take(self, epoch: int, begin: int, ready: Ready | None, rows: Tensor, start: int, stop: int) -> Any:
        """The batch of the samples ``rows``, which the micro-batch ``start … stop`` is made of."""
        if self._fetch is None:
            return self.dataset.take(rows)
        try:
            batch = None if ready is None else ready.get((begin, start, stop))
            return self._fetch(epoch, rows.tolist()) if batch is None else batch
        except BaseException:
            self.close()  # the error's traceback may keep the ``for`` alive for long, and with it the workers
            raise

    def _begin(
        self,
        order: Tensor,
        micro_batch: int | None,
        device: torch.device | str | None,
        parting: Parting,
    ) -> Ready | None:
        """Let the workers begin with the rest of the epoch."""
        if self._workers is None:
            return None
        rank, size = self._processes.rank, self._processes.size
        cuts = self.sizes.cuts(self._epoch, self.samples, self._consumed, self.drop_last)
        # It must not know this loader, which would keep itself alive by it, and its workers with it.
        mixed = None if self.mix is None else partial(self.mix.plan, seed=self.seed, epoch=self._epoch)
        share = partial(parting.edges, rank=rank, size=size)
        plan = partial(_plan, order, self._epoch, cuts, share, micro_batch, mixed, parting)
        return self._workers.begin(plan, None if device is None else torch.device(device))

    def _next_cut(self) -> tuple[int, int] | None:
        """Where the next batch of the epoch begins and ends; None where there is none."""
        size = self.sizes.at(self._epoch, self._consumed, self.samples)
        end = min(self.samples, self._consumed + size)
        least = size if self.drop_last else 1
        return (self._consumed, end) if end - self._consumed >= least else None

    def take_at_most(self, samples: int) -> None:
        """Make batches no larger than this, from the next one on; a schedule is left as it is."""
        if self.sizes.fixed and samples < self.batch_size:
            self.sizes = BatchSizes(samples)
            self.batch_size = self._latest = samples

    def close(self) -> None:
        """End the workers, where there are any; they start anew when they are needed again."""
        if self._workers is not None:
            self._workers.close()

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _small(self) -> bool:
        return self.dataset.bytes_per_sample * min(self.sizes.largest or self.samples, self.samples) <= AT_ONCE_BYTES

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
        return f"BatchLoader({self.samples} samples in batches of {self.sizes}, seed={self.seed})"


def _plan(
    order: Tensor,
    epoch: int,
    cuts: Sequence[tuple[int, int]],
    share: Callable[[int], Sequence[int]],
    micro_batch: int | None,
    mixed: Callable[..., Plan] | None,
    parting: Parting,
) -> Iterator[tuple[Place, Task]]:
    """The micro-batches of an epoch that are a process's, whole batches from and to ``cuts``."""
    for begin, end in cuts:
        whole = order[begin:end]
        edges = share(whole.shape[0])
        first, last = edges[0], edges[-1]
        indices = whole[first:last]
        plan = None if mixed is None else mixed(whole, place=begin).part(first, last)
        inner = [edge - first for edge in edges]
        for start, stop in bounds_between(inner, micro_batch, parting.align, not parting.rest_of_one) or [(0, 0)]:
            rows = indices[start:stop]
            if plan is not None:
                rows = plan.part(start, stop).rows(rows)[0]
            yield (begin, start, stop), (epoch, rows.tolist())
