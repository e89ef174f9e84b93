"""IDX files: the format of MNIST and its kin, read whole and checked whole, packed with gzip or not.

A file is two zero bytes, a byte that names the type of its elements, a byte with the number of axes, the length of
each axis as a big-endian uint32, and then the elements, big-endian, the last axis fastest (LeCun, Cortes and Burges,
"The MNIST database of handwritten digits", 1998).
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from wholebatch.core.errors import DataError, nearest

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 24  # bytes read at once, so that a header full of nonsense reserves no memory
_PREFIX = {"train": "train", "test": "t10k"}

#: Where Debian's package ``dataset-fashion-mnist`` puts its files.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def read_idx(path: str | Path) -> Tensor:
    """Return what an IDX file holds: a tensor of the file's shape, in the type of its elements.

    uint8, int8, int16, int32, float32 and float64 are all the types there are. A file that is packed with gzip is
    known by its content, whatever its name.

    Raises:
        DataError: the file is missing or unreadable, is no IDX file, is cut off, or has bytes left over; it is named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two-idx2-short"
    ...     _ = path.write_bytes(bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0xFF, 0xFF, 1, 0]))
    ...     read_idx(path)
    tensor([[ -1, 256]], dtype=torch.int16)
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            if packed:
                with gzip.open(raw) as file:
                    return _read(file, path)
            return _read(raw, path)
    except FileNotFoundError as error:
        raise DataError(f"there is no IDX file {path}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut off: its gzip data do not unpack ({error}); {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


_AGAIN = "fetch the file again, or install the package that brings it again"


def _read(file: IO[bytes] | gzip.GzipFile, path: Path) -> Tensor:
    kind, shape = _header(file, path)
    wanted = math.prod(shape) * kind.itemsize
    data = bytearray()
    while len(data) <= wanted:  # one byte more than wanted shows whether something is left over
        piece = file.read(min(_CHUNK, wanted + 1 - len(data)))
        if not piece:
            break
        data += piece
    described = f"{' x '.join(map(str, shape))} elements of {kind.name} take {wanted} bytes"
    if len(data) < wanted:
        raise DataError(f"{path} is cut off: {described} after its header, and {len(data)} are there; {_AGAIN}")
    if len(data) > wanted:
        raise DataError(f"{path} has bytes left over: {described} after its header, and more are there; {_AGAIN}")
    array = np.frombuffer(data, dtype=kind).reshape(shape)
    return torch.from_numpy(array.astype(kind.newbyteorder("="), copy=False))


def _header(file: IO[bytes] | gzip.GzipFile, path: Path) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """The type and the shape that a file announces."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] == 0:
        raise DataError(
            f"{path} is no IDX file: it begins with {magic.hex(' ') or 'nothing'}; expected 00 00, the type of its "
            f"elements (08, 09, 0b, 0c, 0d or 0e) and the number of axes, at least 1; {_AGAIN}"
        )
    lengths = file.read(4 * magic[3])
    if len(lengths) < 4 * magic[3]:
        raise DataError(f"{path} is cut off within its header, which announces {magic[3]} axes; {_AGAIN}")
    return np.dtype(_TYPES[magic[2]]), tuple(int(length) for length in np.frombuffer(lengths, dtype=">u4"))


def read_labelled(split: str, folders: Iterable[str | Path], repair: str = "") -> tuple[Tensor, Tensor]:
    """Return the images and labels of a split of MNIST, Fashion-MNIST or another data set in their four files.

    Args:
        split: "train" (``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``) or "test" (``t10k-…``).
        folders: where to look; the first one that has both files is taken, as they are or with ``.gz``.
        repair: what to do where none has them, said at the message's end.

    Returns:
        images, uint8 (samples, height, width), and labels, int64 (samples,).

    Raises:
        DataError: another split; no folder has both files (all are named); a file is damaged or holds something else.
    """
    if split not in _PREFIX:
        raise DataError(f"the splits are 'train' and 'test', got {split!r}{nearest(str(split), _PREFIX)}")
    names = f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"
    places = [Path(folder) for folder in folders]
    for folder in places:
        found = [_there(folder / name) for name in names]
        if found[0] is not None and found[1] is not None:
            return _labelled(found[0], found[1])
    looked = ", ".join(str(folder) for folder in places)
    raise DataError(
        f"no folder has {names[0]} and {names[1]} (or both with .gz); looked in {looked}. {repair}".rstrip()
    )


def _there(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


def _labelled(images_path: Path, labels_path: Path) -> tuple[Tensor, Tensor]:
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, tensor, axes in ((images_path, images, 3), (labels_path, labels, 1)):
        if tensor.dtype != torch.uint8 or tensor.ndim != axes:
            raise DataError(
                f"{path} holds {tensor.dtype} of shape {tuple(tensor.shape)}; expected uint8 with {axes} "
                f"{'axes' if axes > 1 else 'axis'}: is it another file under this name?"
            )
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels; expected as many of "
            f"both, at least one; {_AGAIN}"
        )
    return images, labels.long()


def fashion_mnist_folders(root: str | Path | None = None) -> list[Path]:
    """Return where Fashion-MNIST is looked for, in order.

    That is ``root`` (itself, and its ``FashionMNIST/raw``, as torchvision lays it out), the folder that Dive into Deep
    Learning downloads to, ``../data/FashionMNIST/raw``, and the one of Debian's package ``dataset-fashion-mnist``.
    """
    own = [] if root is None else [Path(root) / "FashionMNIST" / "raw", Path(root)]
    return [*own, Path("..") / "data" / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST]


def fashion_mnist_arrays(split: str, root: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Return Fashion-MNIST's images, uint8 (samples, 28, 28), and labels, int64 (samples,), of "train" or "test".

    Raises:
        DataError: as :func:`read_labelled`; the message says where it was looked for and what installs the files.
    """
    repair = (
        "Put the four files into one of them, say root= with the folder that has them, or, on Debian and Ubuntu: "
        "apt-get install dataset-fashion-mnist"
    )
    if root is None:
        repair = f"(And in root=, which was not given.) {repair}"
    return read_labelled(split, fashion_mnist_folders(root), repair)
