"""A batch of a data set, and whether the data set gives the same items when it is asked again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from wholebatch.core import tree
from wholebatch.core.errors import DataError
from wholebatch.data import BatchLoader, StreamLoader
from wholebatch.verifying.result import Case

_SAMPLES = 32  # of a data set given without a loader


def is_source(batch: Any) -> bool:
    """Whether it is a loader or a data set, and no batch."""
    if isinstance(batch, BatchLoader | StreamLoader | DataLoader | IterableDataset):
        return True
    plain = isinstance(batch, Tensor | np.ndarray | tuple | list | Mapping | str)
    return not plain and hasattr(batch, "__getitem__") and hasattr(batch, "__len__")


def read_twice(source: Any) -> tuple[Any, Case]:
    """Return the first batch of a loader or data set, and a case: whether reading it again gave the same.

    Raises:
        DataError: it is a stream, whose items cannot be asked for again.
    """
    loader = _loader(source)
    place = loader.state_dict()
    window = next(iter(loader.windows()))
    first, second = window.whole(), window.whole()
    loader.load_state_dict(place)
    name = type(source.dataset if isinstance(source, DataLoader | BatchLoader) else source).__name__
    return first, _case(name, first, second, window.indices)


def _loader(source: Any) -> BatchLoader:
    if isinstance(source, BatchLoader):
        return source
    dataset: Any = source.dataset if isinstance(source, DataLoader) else source
    if isinstance(source, StreamLoader) or isinstance(dataset, IterableDataset):
        raise DataError(f"a {type(source).__name__} cannot be read twice at one place; give a batch of it")
    if isinstance(source, DataLoader):
        return BatchLoader(dataset, source.batch_size or _SAMPLES, shuffle=False, collate=source.collate_fn)
    return BatchLoader(dataset, min(_SAMPLES, len(dataset)) or 1, shuffle=False)


def _case(name: str, first: Any, second: Any, indices: Tensor) -> Case:
    label = f"the data read twice, {len(indices)} items"
    error = 0.0
    for (where, one, _), (_, two, _) in zip(tree.arrays(first), tree.arrays(second), strict=True):
        a, b = torch.as_tensor(one).double(), torch.as_tensor(two).double()
        if a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)):
            continue
        if a.shape != b.shape:
            return Case(label, float("inf"), float("nan"), False, f"{name} gives {where} in another shape next time")
        rows = (a != b).flatten(1).any(1) if a.ndim > 1 else a != b
        item = int(indices[int(rows.nonzero()[0])])
        error = float((a - b).norm() / a.norm().clamp_min(1e-30))
        said = (
            f"{name} is unstable: item {item} differs when it is read twice ({where}), so the result depends on when "
            "it is read; key its draws by sample (a transform of wholebatch.data), or draw them once"
        )
        return Case(label, error, float("nan"), False, said)
    return Case(label, error, 1.0, True)
