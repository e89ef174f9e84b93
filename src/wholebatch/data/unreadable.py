"""Which images of a data set cannot be read: every one decoded once."""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from wholebatch.core.errors import DataError
from wholebatch.data import cache

if TYPE_CHECKING:
    from wholebatch.data.imageset import ImageDataset


def unreadable(dataset: ImageDataset) -> dict[int, str]:
    """Return the places of the images that cannot be decoded, with the reasons.

    The result is kept in the cache folder, by the data set's fingerprint, and never looked for twice.
    """
    fingerprint = dataset.fingerprint()
    key = None if fingerprint is None else cache.key("unreadable", fingerprint)
    known = None if key is None else _read(key)
    if known is not None:
        return known
    found = _look(dataset)
    if key is not None:
        cache.store_bytes(f"{key}.json", json.dumps(found).encode())
    return found


def _read(key: str) -> dict[int, str] | None:
    text = cache.read_bytes(f"{key}.json")
    try:
        return None if text is None else {int(place): str(reason) for place, reason in json.loads(text).items()}
    except (ValueError, AttributeError):  # a damaged cache is no cache
        return None


def _look(dataset: ImageDataset) -> dict[int, str]:
    """Threads will do: Pillow lets others run while it decodes."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        reasons = pool.map(partial(_reason, dataset), range(len(dataset)))
        return {place: reason for place, reason in enumerate(reasons) if reason is not None}


def _reason(dataset: ImageDataset, place: int) -> str | None:
    try:
        dataset.decode(place)
    except DataError as error:
        return str(error)
    return None
