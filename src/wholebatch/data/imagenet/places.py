"""Where things lie: the unpacked trees and archives below ``data_root``, and a folder for what is kept between runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from wholebatch.core.errors import DataError
from wholebatch.data.imagenet.listing import is_image
from wholebatch.data.imagenet.names import SYNSET


@dataclass(frozen=True)
class Part:
    """One part of the data set and how it is called on disk."""

    name: str
    folder: str  # below data_root, where it is unpacked to
    other_folders: tuple[str, ...]  # where others have unpacked it to
    archive: str
    gigabytes: int
    images: int


TRAIN = Part(
    "training",
    "train",
    ("ILSVRC2012_train/data", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train"),
    "ILSVRC2012_img_train.tar",
    138,
    1_281_167,
)
VALIDATION = Part(
    "validation",
    "val",
    ("ILSVRC2012_validation/data", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val"),
    "ILSVRC2012_img_val.tar",
    7,
    50_000,
)


def cache_folder() -> Path:
    """Return the folder for lists that cannot be kept beside the images; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "wholebatch" / "imagenet"


def root_of(data_root: str | os.PathLike[str] | None) -> Path:
    """Return the folder that holds archives or trees: ``data_root``, or where it is looked for without one."""
    return cache_folder() if data_root is None else Path(os.path.abspath(os.path.expanduser(data_root)))


def unpacked(root: Path, part: Part) -> Path | None:
    """Return the folder with the images of ``part``, or None where there is none."""
    for folder in (part.folder, *part.other_folders):
        if holds_images(root / folder):
            return root / folder
    return None


def holds_images(folder: Path) -> bool:
    """Say whether a folder holds classes (folders named by synsets) or images."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as found:
        return any(
            (SYNSET.fullmatch(entry.name) and entry.is_dir()) or (is_image(entry.name) and entry.is_file())
            for entry in found
        )


def archive_of(root: Path, part: Part) -> Path:
    """Return the archive of ``part``.

    Raises:
        DataError: there is none, so the part is missing altogether; the message says how to get it.
    """
    for path in (root / part.archive, root / part.other_folders[0].partition("/")[0] / part.archive):
        if path.is_file():
            return path
    layout = f"{part.folder}/n01440764/…" if part is TRAIN else f"{part.folder}/ILSVRC2012_val_00000001.JPEG …"
    held = sorted(entry.name for entry in root.iterdir())[:8] if root.is_dir() else None
    found = "the folder does not exist" if held is None else f"it holds {', '.join(held) or 'nothing'}"
    raise DataError(
        f"ImageNet's {part.name} part is not in {root} ({found}). Put there the archive {part.archive} "
        f"({part.gigabytes} GB) or the unpacked {layout}, or say data_root=; register at "
        "https://image-net.org/download-images to get it (ILSVRC 2012)"
    )
