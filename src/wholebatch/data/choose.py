"""The loader that fits what people have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.errors import DataError
from wholebatch.data.adapt import as_dataset, has_random_access
from wholebatch.data.loader import BatchLoader
from wholebatch.data.stream import StreamLoader
from wholebatch.data.transform import Transform


def as_loader(
    data: Any,
    batch_size: int | BatchSizes | None,
    *,
    seed: int = 0,
    shuffle: bool = True,
    transform: Transform | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    workers: int = 0,
) -> BatchLoader | StreamLoader:
    """Return a loader of ``data``: a loader as it is, else a :class:`BatchLoader`, or a :class:`StreamLoader` for what
    has no random access (where ``shuffle`` and ``workers`` are the source's own affair).

    Raises:
        DataError: a loader of another batch size, or of its own transform; and as the loaders do.

    >>> import torch
    >>> as_loader((torch.zeros(6, 2), torch.zeros(6)), 4)
    BatchLoader(6 samples in batches of 4, seed=0)
    """
    if isinstance(data, BatchLoader | StreamLoader):
        own = data.sizes if isinstance(data, BatchLoader) and isinstance(batch_size, BatchSizes) else data.batch_size
        if batch_size is not None and own not in (None, batch_size):
            raise DataError(f"batch_size is {batch_size}, but the loader given has {own}; say it once")
        if transform is not None or collate is not None:
            raise DataError(f"give transform and collate to the {type(data).__name__} where it is made")
        return data
    dataset = as_dataset(data)
    if isinstance(batch_size, BatchSizes) and not has_random_access(dataset):
        raise DataError(
            f"a schedule of batch sizes needs data with random access, not {type(data).__name__}; give a number"
        )
    if not has_random_access(dataset):
        assert not isinstance(batch_size, BatchSizes)
        return StreamLoader(dataset, batch_size, seed=seed, transform=transform, collate=collate)
    if batch_size is None:
        raise DataError(f"how many samples of {type(data).__name__} make a batch? say batch_size")
    return BatchLoader(
        dataset, batch_size, seed=seed, shuffle=shuffle, transform=transform, collate=collate, workers=workers
    )
