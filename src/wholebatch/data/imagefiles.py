"""Images in files: what a folder and a list of files become."""

from __future__ import annotations

import os
from collections.abc import Sequence

from PIL import Image

from wholebatch.data import cache
from wholebatch.data.images import read_image
from wholebatch.data.imageset import ImageDataset


class ImageFiles(ImageDataset):
    """Labelled image files.

    Args:
        root: the folder that ``files`` are relative to.
        files: paths of the images.
        labels, classes, size, on_error: see :class:`ImageDataset`.

    Raises:
        DataError: no file, or with ``on_error="skip"`` none that can be read.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        files: Sequence[str],
        labels: Sequence[int],
        classes: Sequence[str],
        size: int | None = None,
        on_error: str = "raise",
    ) -> None:
        self.root, self.files = os.path.abspath(root), list(files)
        super().__init__(labels, classes, size, on_error)

    def what(self) -> str:
        """Return the folder."""
        return shown(self.root)

    def path_at(self, place: int) -> str:
        """Return the path of the file at ``place`` of all that were found."""
        return os.path.join(self.root, self.files[place])

    def path(self, index: int) -> str:
        """Return the path of sample ``index``."""
        return self.path_at(int(self._kept[index]))

    def name_at(self, place: int) -> str:
        """Return the path, printable."""
        return shown(self.path_at(place))

    def decode(self, place: int) -> Image.Image:
        """Return the image in the file at ``place``, upright, in RGB."""
        return read_image(self.path_at(place), self.name_at(place))

    def fingerprint(self) -> str | None:
        """Return a text of all files' names, sizes and times; None where one of them is missing."""
        try:
            return cache.stamp(map(self.path_at, range(len(self.files))))
        except OSError:
            return None


def shown(path: str | os.PathLike[str]) -> str:
    r"""Return ``path`` as text that can be printed, whatever bytes a file's name is made of.

    >>> shown("a\udcff.jpg")
    'a\\udcff.jpg'
    """
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()
