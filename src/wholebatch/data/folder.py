"""A folder of photographs, a folder per class."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data.checks import on_error_policy
from wholebatch.data.imagefiles import ImageFiles, shown
from wholebatch.data.split import check_split, stratified

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".pbm", ".pnm", ".tga", ".ico", ".jp2", ".avif", ".pcx"),
)
_TEST_FOLDERS = ("test", "val", "valid", "validation")
_LEFT_BY_SYSTEMS = ("__MACOSX", "$RECYCLE.BIN", "System Volume Information")

Found = list[tuple[str, str]]  # (class, path relative to the root)


def image_folder(
    path: str | os.PathLike[str],
    split: str | None = None,
    on_error: str = "raise",
    *,
    size: int | None = None,
    test_share: float = 0.2,
    seed: int = 0,
) -> ImageFiles:
    """Return the images in ``path/class/*.jpg``; every folder is a class, in the order of their names.

    - Folders in a class folder belong to it. Links are followed, never in a circle.
    - A file is an image by its extension, in either case; what it really holds is found when it is read. Hidden files
      and folders (``.name``) and what systems leave behind (``__MACOSX``) are passed over, likewise other files.
    - A folder without images is no class.
    - Images are turned upright as their EXIF data say, and become RGB.

    Args:
        path: the folder.
        split: None is everything. Where ``path`` holds the folders ``train`` and ``test`` (or ``val``, ``valid``,
            ``validation``), "train" and "test" are these; otherwise a split that is stratified by class and a function
            of ``seed`` and the files' names (:func:`wholebatch.data.split.stratified`).
        on_error: "raise": an image that cannot be read raises when it is read. "skip": all are read once, now, and
            those that cannot be are left out and counted in ``skipped``.
        size: see :class:`wholebatch.data.imageset.ImageDataset`.
        test_share: the test part's share of a class, where there are no such folders.
        seed: of that split.

    Raises:
        DataError: there is no such folder, no class folder, no image, or an impossible argument.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("cat", "dog"):
    ...         os.mkdir(os.path.join(folder, name))
    ...         Image.new("RGB", (8, 6)).save(os.path.join(folder, name, "1.PNG"))
    ...     data = image_folder(folder)
    ...     data, data.classes, data[0][0].shape
    (ImageFiles(2 images in 2 classes), ('cat', 'dog'), torch.Size([3, 6, 8]))
    """
    check_split(split, "a folder")
    on_error_policy(on_error)  # before a long walk
    root = _folder(path)
    parts = _split_folders(root)
    found: Found = []
    for part in parts.values() if split is None else [parts[split]] if parts else []:
        found += _images(root, part)
    if not parts:
        found = list(_images(root, ""))
    classes = sorted({name for name, _ in found})
    if split == "test" and parts:
        classes = _training_classes(root, parts["train"], classes)
    if not found:
        raise DataError(_nothing(root))
    numbers = {name: number for number, name in enumerate(classes)}
    files, labels = [file for _, file in found], [numbers[name] for name, _ in found]
    if split is not None and not parts:
        chosen = stratified(files, labels, split, seed, test_share)
        files, labels = [files[place] for place in chosen], [labels[place] for place in chosen]
        if not files:
            raise DataError(f"{shown(root)}: no class has two images, so none is left for the test part")
    return ImageFiles(root, files, labels, classes, size, on_error)


def is_image(name: str) -> bool:
    """Return whether a file's name is that of an image that is to be seen.

    >>> is_image("IMG 1.JPG"), is_image("._IMG 1.JPG"), is_image("notes.txt")
    (True, False, False)
    """
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def walk(folder: str) -> Iterator[str]:
    """Yield the paths of all image files below ``folder``, in the order of their names, links followed.

    Raises:
        DataError: a folder cannot be read.
    """
    yield from _walk(folder, frozenset())


def _walk(folder: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        entries = _entries(folder)
    except OSError as error:
        raise DataError(f"the folder {shown(folder)} cannot be read: {error.strerror or error}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link to a folder that it is in
        return
    for entry in entries:
        if _is_folder(entry):
            yield from _walk(entry.path, above | {here})
        elif is_image(entry.name) and (entry.is_file() or entry.is_symlink()):  # a broken link is a missing image
            yield entry.path


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, in the order of names."""
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name not in _LEFT_BY_SYSTEMS and entry.is_dir()


def _folder(path: str | os.PathLike[str]) -> str:
    try:
        root = os.path.abspath(os.path.expanduser(os.fspath(path)))
    except TypeError:
        raise InputTypeError(f"image_folder takes the path of a folder, got {path!r:.80}") from None
    if not os.path.isdir(root):
        reason = "is a file" if os.path.exists(root) else "there is no such folder"
        raise DataError(f"{shown(root)}: {reason}; name a folder that holds a folder of images per class")
    return root


def _split_folders(root: str) -> dict[str, str]:
    """The folders of the two parts, relative to the root, or nothing where there are not both."""
    names = {entry.name.lower(): entry.name for entry in _entries(root) if _is_folder(entry)}
    test = next((name for name in _TEST_FOLDERS if name in names), None)
    if "train" not in names or test is None:
        return {}
    if any(is_image(entry.name) for part in ("train", test) for entry in _entries(os.path.join(root, names[part]))):
        return {}  # two classes that are called so
    return {"train": names["train"], "test": names[test]}


def _images(root: str, part: str) -> Iterator[tuple[str, str]]:
    """(class, path relative to the root) of every image in a class folder of ``root/part``."""
    for entry in _entries(os.path.join(root, part)):
        if _is_folder(entry):
            name = shown(unicodedata.normalize("NFC", entry.name))  # macOS writes é as e and an accent
            for file in walk(entry.path):
                yield name, os.path.relpath(file, root)


def _training_classes(root: str, part: str, classes: list[str]) -> list[str]:
    known = sorted({name for name, _ in _images(root, part)})
    unknown = sorted(set(classes) - set(known))
    if unknown:
        raise DataError(f"{shown(root)}: the test part has the class {unknown[0]!r}, which the training part lacks")
    return known


def _nothing(root: str) -> str:
    loose = sum(is_image(entry.name) for entry in _entries(root))
    if loose:
        return (
            f"{shown(root)} holds {loose} images, but no folder per class (cat/1.jpg, dog/2.jpg); "
            "move them, or give a list of files and labels to image_list"
        )
    return f"{shown(root)}: no image in it; expected a folder of images per class, such as cat/1.jpg, dog/2.jpg"
