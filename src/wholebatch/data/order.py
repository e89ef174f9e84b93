"""The order of an epoch: a function of the seed and the epoch, never a state."""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.core import keys


def epoch_order(samples: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which epoch ``epoch`` (from 0) visits ``samples`` samples: int64, shape (samples,).

    Batch *t* of the epoch is the *t*-th slice of it, so that resuming needs nothing but the epoch and the
    number of samples consumed.

    >>> order = epoch_order(5, seed=0, epoch=3)
    >>> order.sort().values.tolist(), torch.equal(order, epoch_order(5, seed=0, epoch=3))
    ([0, 1, 2, 3, 4], True)
    """
    return torch.randperm(samples, generator=keys.generator(seed, "order", epoch))
