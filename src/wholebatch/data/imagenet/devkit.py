"""Which class each validation image is of: the ground truth of the development kit, or a list of the same."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from wholebatch.core.errors import DataError
from wholebatch.data.imagenet.archives import damaged, entries
from wholebatch.data.imagenet.names import SYNSET, synset_of_id

_TRUTH = re.compile(r"ILSVRC201\d_(clsloc_)?validation_ground_truth\.txt")
_LISTS = (  # the same as synsets, as others give it: latent-diffusion, TensorFlow's models, Kaggle
    "validation_synset.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "LOC_val_solution.csv",
)
_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.ASCII)
_FOLDERS = ("", "ILSVRC2012_devkit_t12/data", "ILSVRC2012_devkit_t12", "devkit/data", "devkit", "data")
_LARGEST = 1 << 24  # bytes; the ground truth has 200 KB, the longest list 4 MB


class GroundTruth:
    """Tells the synset of a validation image from its file name; the kit is read at the first question.

    It is searched for in ``root``: ``ILSVRC2012_devkit_t12.tar.gz``, the folder of the same name, the text file
    ``ILSVRC2012_validation_ground_truth.txt`` itself, or another list of the same.

    The text has one ``ILSVRC2012_ID`` (1 to 1000) a line, line *k* being of the image number *k*. Those numbers
    are not the labels, which follow the order of the synsets: the table of classes translates.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._source: Path | None = None
        self._known: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        """Return the synset of the image ``name``.

        Raises:
            DataError: there is no ground truth, it is malformed, or it does not tell this image.
        """
        if self._source is None:
            path, text = _read(self.root)
            self._known = dict(_parsed(text, str(path)))
            self._source = path
        match = _IMAGE.fullmatch(name)
        found = self._known.get(str(int(match[1]))) if match else None
        found = found or self._known.get(name.partition(".")[0])
        if found is None:
            raise DataError(
                f"{self._source} does not say which class {name} is of; expected a name such as "
                f"ILSVRC2012_val_00000001.JPEG and a line for its number, there are {len(self._known)} lines"
            )
        return found


def _read(root: Path) -> tuple[Path, str]:
    """The path and the text of the first list there is."""
    for folder in _FOLDERS:
        here = root / folder
        names = sorted(entry.name for entry in here.iterdir()) if here.is_dir() else []
        for name in [*(name for name in names if _TRUTH.fullmatch(name)), *(n for n in _LISTS if n in names)]:
            return here / name, _text((here / name).read_bytes(), str(here / name))
    for archive in sorted(root.glob("*devkit*.tar*")):
        with archive.open("rb") as file:
            for entry in entries(file, archive.name, "r:*"):
                if _TRUTH.fullmatch(entry.parts[-1]) and entry.size <= _LARGEST:
                    try:
                        return archive, _text(entry.content.read(), entry.where)
                    except (OSError, EOFError, zlib.error) as error:
                        raise damaged(entry.where, error) from error
        raise DataError(f"{archive} holds no ILSVRC2012_validation_ground_truth.txt; it is another development kit")
    raise DataError(
        f"the classes of the validation images are not in {root}: put the development kit there "
        "(ILSVRC2012_devkit_t12.tar.gz, 2.5 MB, from https://image-net.org/download-images), or its "
        "ILSVRC2012_validation_ground_truth.txt; or sort the images into one folder per class (val/n01440764/…)"
    )


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text of class numbers: {error}") from error


def _parsed(text: str, where: str) -> Iterator[tuple[str, str]]:
    """Pairs of (number or name of an image, synset), from any of the lists."""
    synsets = synset_of_id()
    known = set(synsets.values())
    for number, line in enumerate(text.splitlines(), 1):
        if number == 1 and line.startswith("ImageId,"):  # Kaggle's names its columns
            continue
        key, said = str(number), line.strip()
        if said.isdigit() and int(said) in synsets:
            yield key, synsets[int(said)]
            continue
        name = said.replace(",", " ").split()
        if len(name) > 1:  # an image's name, then a synset, with or without a path behind it
            key, said = name[0].partition(".")[0], name[1].partition("/")[0]
        if not SYNSET.fullmatch(said) or said not in known:
            raise DataError(
                f"{where}, line {number}: {line!r:.80} is no ILSVRC2012_ID (1 to 1000) and no synset of the challenge"
            )
        yield key, said
