"""IDX files: all element types, packed or not, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from wholebatch.core.errors import DataError
from wholebatch.data import idx
from wholebatch.data.idx import fashion_mnist_arrays, fashion_mnist_folders, read_idx, read_labelled

TYPES = {0x08: ("u1", torch.uint8), 0x09: ("i1", torch.int8), 0x0B: ("i2", torch.int16), 0x0C: ("i4", torch.int32),
         0x0D: ("f4", torch.float32), 0x0E: ("f8", torch.float64)}  # fmt: skip


def content(code: int, array: np.ndarray) -> bytes:
    kind = ">" + TYPES[code][0]
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(kind).tobytes()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("code", TYPES)
def test_every_type_of_element(tmp_path: Path, code: int, packed: bool) -> None:
    values = np.arange(-60, 60).reshape(2, 3, 20) * (2 if code > 9 else 1)
    if code == 8:
        values = values + 100
    if code >= 0x0D:
        values = values / 7
    data = content(code, values)
    path = tmp_path / "some-idx3"
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    read = read_idx(path)
    assert read.dtype is TYPES[code][1]
    assert read.shape == (2, 3, 20)
    assert np.array_equal(read.numpy(), values.astype(TYPES[code][0]))
    read[0] = 1  # the memory is the reader's own


def test_an_empty_axis_and_a_path_as_text(tmp_path: Path) -> None:
    path = tmp_path / "none"
    path.write_bytes(content(8, np.zeros((0, 28, 28))))
    assert read_idx(str(path)).shape == (0, 28, 28)


GOOD = content(8, np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is no IDX file: it begins with nothing"),
        (b"\0\0\x08", "is no IDX file"),
        (b"\0\1" + GOOD[2:], "is no IDX file: it begins with 00 01 08 02"),
        (b"\0\0\x0a" + GOOD[3:], "expected 00 00, the type of its elements"),
        (b"\0\0\x08\0", "number of axes, at least 1"),
        (GOOD[:9], "cut off within its header, which announces 2 axes"),
        (GOOD[:-1], "is cut off: 3 x 4 elements of uint8 take 12 bytes after its header, and 11 are there"),
        (GOOD + b"\0", "has bytes left over: 3 x 4 elements of uint8 take 12 bytes"),
        (b"\0\0\x0e\3" + b"\xff" * 12 + b"abc", "is cut off: 4294967295 x 4294967295 x 4294967295"),
        (gzip.compress(GOOD, mtime=0)[:-9], "its gzip data do not unpack"),
        (gzip.compress(GOOD, mtime=0)[:10] + b"\xff" * 30, "its gzip data do not unpack"),
        (gzip.compress(GOOD[:-2], mtime=0), "is cut off: 3 x 4"),
        (gzip.compress(GOOD + b"more", mtime=0), "has bytes left over"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "bad-idx2-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read_idx(path)
    assert says in str(error.value)
    assert str(path) in str(error.value)
    assert "fetch the file again" in str(error.value)


def test_a_file_larger_than_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_CHUNK", 4)
    path = tmp_path / "pieces"
    path.write_bytes(GOOD)
    assert read_idx(path).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    path.write_bytes(GOOD + b"\0")
    with pytest.raises(DataError, match="has bytes left over"):
        read_idx(path)


def test_a_file_that_is_not_there_or_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no IDX file .*nowhere"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path)


def write(folder: Path, images: np.ndarray, labels: np.ndarray, prefix: str = "train", end: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if end else bytes
    (folder / f"{prefix}-images-idx3-ubyte{end}").write_bytes(pack(content(8, images)))
    (folder / f"{prefix}-labels-idx1-ubyte{end}").write_bytes(pack(content(8, labels)))


def test_a_split_is_taken_from_the_first_folder_that_has_both_files(tmp_path: Path) -> None:
    half, second, third = tmp_path / "half", tmp_path / "second", tmp_path / "third"
    half.mkdir()
    (half / "train-labels-idx1-ubyte").write_bytes(content(8, np.zeros(2)))
    write(second, np.full((2, 5, 4), 7), np.array([3, 200]), end=".gz")
    write(third, np.full((1, 5, 4), 9), np.array([1]))
    write(third, np.full((4, 5, 4), 1), np.arange(4), prefix="t10k")
    images, labels = read_labelled("train", [half, second, third])
    assert images.shape == (2, 5, 4)
    assert (images == 7).all()
    assert labels.tolist() == [3, 200]
    assert labels.dtype is torch.int64
    assert len(read_labelled("test", [half, second, third])[0]) == 4
    with pytest.raises(DataError, match=r"'train' and 'test', got 'trian'; did you mean 'train'\?"):
        read_labelled("trian", [second])


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (np.zeros((2, 4)), np.zeros(2), r"idx3-ubyte holds torch.uint8 of shape \(2, 4\); expected uint8 with 3 axes"),
        (np.zeros((2, 4, 4)), np.zeros((2, 1)), r"labels-idx1-ubyte holds .* expected uint8 with 1 axis"),
        (np.zeros((2, 4, 4)), np.zeros(3), "has 2 images and .* has 3 labels"),
        (np.zeros((0, 4, 4)), np.zeros(0), "has 0 images and .* has 0 labels; expected as many of both, at least one"),
    ],
)  # fmt: skip
def test_files_that_do_not_belong_together(tmp_path: Path, images: np.ndarray, labels: np.ndarray, says: str) -> None:
    write(tmp_path, images, labels)
    with pytest.raises(DataError, match=says):
        read_labelled("train", [tmp_path])


def test_fashion_mnist_is_looked_for_in_three_places_and_the_message_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    for root in (None, "mine"):
        with pytest.raises(DataError) as error:
            fashion_mnist_arrays("test", root)
        said = str(error.value)
        for part in ("t10k-images-idx3-ubyte", "../data/FashionMNIST/raw", "root=", str(tmp_path / "debian"),
                     "apt-get install dataset-fashion-mnist"):  # fmt: skip
            assert part in said
    assert "mine/FashionMNIST/raw, mine, ../data" in said


def test_root_goes_before_the_book_and_the_book_before_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chapter").mkdir()
    monkeypatch.chdir(tmp_path / "chapter")
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    places = [tmp_path / "debian", tmp_path / "data" / "FashionMNIST" / "raw", tmp_path / "root",
              tmp_path / "root" / "FashionMNIST" / "raw"]  # fmt: skip
    for samples, place in enumerate(places, start=1):
        write(place, np.zeros((samples, 3, 3)), np.zeros(samples))
        assert len(fashion_mnist_arrays("train", "../root")[0]) == samples
    assert len(fashion_mnist_arrays("train")[0]) == 2


@pytest.mark.skipif(
    not (idx.DEBIAN_FASHION_MNIST / "train-images-idx3-ubyte.gz").exists(),
    reason="Debian's package dataset-fashion-mnist is not installed here",
)
def test_debians_fashion_mnist() -> None:
    assert fashion_mnist_folders()[-1] == idx.DEBIAN_FASHION_MNIST
    for split, samples in (("train", 60_000), ("test", 10_000)):
        images, labels = read_labelled(split, [idx.DEBIAN_FASHION_MNIST])
        assert images.shape == (samples, 28, 28)
        assert labels.bincount().tolist() == [samples // 10] * 10
