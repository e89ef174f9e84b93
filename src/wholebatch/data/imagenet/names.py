"""The 1,000 classes: synsets, words, and the numbers of the development kit (``files/imagenet_classes.tsv``)."""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import NamedTuple

SYNSET = re.compile(r"n\d{8}", re.ASCII)
"""How a class is named: WordNet 3.0's offset of a noun."""


class ImageNetClass(NamedTuple):
    """One class of the challenge of 2012."""

    synset: str
    ilsvrc_id: int  # 1 to 1000: what the kit's ground truth says; another order than the labels'
    words: str


@functools.cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """Return the classes in the order of their labels, 0 to 999, which is that of their synsets.

    >>> imagenet_classes()[0]
    ImageNetClass(synset='n01440764', ilsvrc_id=449, words='tench, Tinca tinca')
    """
    text = (files("wholebatch.data") / "files" / "imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return tuple(ImageNetClass(synset, int(number), words) for synset, number, words in rows)


@functools.cache
def synset_of_id() -> dict[int, str]:
    """Return the synset of each ``ILSVRC2012_ID``.

    >>> synset_of_id()[1]
    'n02119789'
    """
    return {row.ilsvrc_id: row.synset for row in imagenet_classes()}
