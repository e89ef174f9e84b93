"""A training and a test part of samples that come without: stratified, and a function of the samples' names."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence

from wholebatch.core.errors import DataError, nearest

SPLITS = ("train", "test")


def check_split(split: str | None, what: str) -> None:
    """Raise where ``split`` is neither "train" nor "test" nor None.

    Raises:
        DataError: it is something else.
    """
    if split is not None and split not in SPLITS:
        hint = nearest(str(split), SPLITS)
        raise DataError(f"{what} has the splits 'train' and 'test' (None: everything), got {split!r}{hint}")


def stratified(
    names: Sequence[str], labels: Sequence[int], split: str, seed: int = 0, test_share: float = 0.2
) -> list[int]:
    """Return the places of the samples of ``split``, in order.

    Of every class the ``round(test_share · n)`` samples whose SHA-256 of (seed, name) is smallest are the test part, at
    least one where there are two. No generator and no order goes in, so any machine finds the same split, and a file
    that is added moves few others.

    Raises:
        DataError: ``test_share`` is not between 0 and 1.

    >>> stratified(["a", "b", "c", "d", "e"], [0, 0, 0, 1, 1], "test")
    [2, 4]
    """
    _check_share(test_share)
    of_class: dict[int, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        of_class[label].append(place)
    test: set[int] = set()
    for places in of_class.values():
        ranked = sorted(places, key=lambda place: (_hash(seed, names[place]), place))
        count = min(max(1, round(test_share * len(places))), len(places) - 1)
        test.update(ranked[:count])
    return [place for place in range(len(names)) if (place in test) == (split == "test")]


def by_content(content: bytes, seed: int = 0, test_share: float = 0.2) -> str:
    """Return the part, "train" or "test", that a sample is of by what it holds: no other sample goes in.

    It is of the test part where SHA-256 of (seed, content), as a fraction, is below ``test_share``.

    Raises:
        DataError: ``test_share`` is not between 0 and 1.

    >>> [by_content(word) for word in (b"one", b"two", b"three", b"four", b"five")]
    ['train', 'test', 'train', 'train', 'train']
    """
    _check_share(test_share)
    digest = hashlib.sha256(f"{seed}/".encode() + content).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_share * 2**64 else "train"


def _check_share(test_share: float) -> None:
    if not 0 < test_share < 1:
        raise DataError(f"test_share must be above 0 and below 1, got {test_share}")


def _hash(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/".encode() + os.fsencode(name)).digest()
