"""What is wrong with a folder of images: files that cannot be read, and the same picture more than once."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from wholebatch.core.errors import DataError
from wholebatch.data.imagefiles import ImageFiles, shown


@dataclass(frozen=True)
class Findings:
    """What :func:`find` found; names are paths relative to the data set's folder.

    Attributes:
        images: how many were looked at.
        classes: how many images of each class.
        unreadable: (file, reason).
        duplicates: groups of files of one class that show the same picture.
        mislabelled: groups of files that show the same picture in different classes.
    """

    images: int
    classes: dict[str, int]
    unreadable: list[tuple[str, str]]
    duplicates: list[list[str]]
    mislabelled: list[list[str]]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.unreadable or self.duplicates or self.mislabelled)


def find(data: ImageFiles) -> Findings:
    """Look at every image once and return what is wrong.

    Two files show the same picture if their pixels are the same to the last bit, however the files are written.
    """
    with warnings.catch_warnings(), ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        seen = list(pool.map(lambda index: _look(data, index), range(len(data))))
    unreadable, of_picture = [], defaultdict(list)
    for index, (digest, reason) in enumerate(seen):
        if reason is None:
            of_picture[digest].append(index)
        else:
            unreadable.append((_file(data, index), reason))
    labels = data.targets.tolist()
    counts = dict.fromkeys(data.classes, 0)
    for label in labels:
        counts[data.classes[label]] += 1
    groups = [group for group in of_picture.values() if len(group) > 1]
    same = [len({labels[index] for index in group}) == 1 for group in groups]
    files = [[_file(data, index) for index in group] for group in groups]
    return Findings(
        images=len(data),
        classes=counts,
        unreadable=unreadable,
        duplicates=[group for group, alike in zip(files, same, strict=True) if alike],
        mislabelled=[group for group, alike in zip(files, same, strict=True) if not alike],
    )


def _look(data: ImageFiles, index: int) -> tuple[bytes, str | None]:
    """The picture's SHA-256, or why there is none."""
    try:
        image = data.decode(index)
    except DataError as error:
        return b"", str(error)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest(), None


def _file(data: ImageFiles, index: int) -> str:
    return shown(os.path.relpath(data.path(index), data.root))
