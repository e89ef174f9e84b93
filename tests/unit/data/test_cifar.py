"""CIFAR in all its layouts, and in none."""

import os
import sys
from pathlib import Path

import cifar_files
import pytest
import torch

import wholebatch as wb
from wholebatch.core.errors import DataError
from wholebatch.data import cache

READ = {10: wb.data.cifar10, 100: wb.data.cifar100}
REAL = os.environ.get("WHOLEBATCH_DATA")  # the tests themselves run without it


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def check(data, classes, split):
    images, labels = cifar_files.content(classes, split)
    assert isinstance(data, wb.data.ArrayDataset)
    assert torch.equal(data.inputs, torch.from_numpy(images))
    assert data.inputs.dtype == torch.uint8
    assert torch.equal(data.targets, torch.from_numpy(labels))
    assert data.classes == tuple(cifar_files.NAMES[classes])
    assert isinstance(data.transform, wb.data.Normalize)
    image, label = data[1]
    assert (tuple(image.shape), int(label)) == ((3, 32, 32), labels[1])


def layouts(classes, root):
    long, inner = f"cifar-{classes}", {10: "batches-py", 100: "python"}[classes]
    python, binary = cifar_files.python_files(classes), cifar_files.binary_files(classes)
    binary_inner = {10: "batches-bin", 100: "binary"}[classes]

    def inside(name, files):
        return {f"{long}-{name}/{file}": data for file, data in files.items()}

    yield put(root / "python", python)
    yield put(root / "python 3", cifar_files.python_files(classes, protocol=4))
    yield put(root / "unpacked" / f"{long}-{inner}", python).parent
    yield put(root / "data" / f"cifar{classes}" / f"{long}-{inner}", python).parent.parent
    yield put(root / "binary", binary)
    yield put(root / "unpacked binary" / f"{long}-{binary_inner}", binary).parent
    yield cifar_files.tar(root / f"{long}-python.tar.gz", inside(inner, python))
    yield cifar_files.tar(put(root / "tar", {}) / f"{long}-python.tar.gz", inside(inner, python)).parent
    yield cifar_files.tar(put(root / "tar2", {}) / f"{long}-binary.tar.gz", inside(binary_inner, binary)).parent
    yield cifar_files.tar(root / "any name.tar", binary, "w")


@pytest.mark.parametrize("classes", [10, 100])
def test_original_files_in_every_layout(tmp_path, classes):
    seen = 0
    for root in layouts(classes, tmp_path):
        for split in ("train", "test"):
            check(READ[classes](split, root), classes, split)
        seen += 1
    assert seen == 10


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("inner", ["", "data", "plain_text", "cifar{}"])
def test_the_hubs_parquet_files(tmp_path, classes, inner):
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra hf)")
    for split in ("train", "test"):
        path = tmp_path / inner.format(classes) / f"{split}-00000-of-00001.parquet"
        cifar_files.parquet(path, classes, split)
        check(READ[classes](split, tmp_path), classes, split)


def test_decoded_images_are_kept_and_mapped(tmp_path, monkeypatch, own_cache):
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra hf)")
    path = cifar_files.parquet(tmp_path / "train.parquet", 10, "train")
    wb.data.cifar10("train", tmp_path)
    kept = list(own_cache.iterdir())
    assert [entry.name.split("-")[0] for entry in kept] == ["cifar10"]
    with monkeypatch.context() as patch:
        patch.setattr(wb.data.ParquetImages, "decode", lambda self, place: pytest.fail("decoded again"))
        check(wb.data.cifar10("train", tmp_path), 10, "train")
    (kept[0] / "images.npy").write_bytes(b"damaged")  # found out, and made again
    check(wb.data.cifar10("train", tmp_path), 10, "train")
    assert cache.load_arrays(kept[0].name, {"images": (20, 3, 32, 32)}) is not None
    cifar_files.parquet(path, 10, "test")  # another content at the same place
    check(wb.data.cifar10("train", tmp_path), 10, "test")
    assert not [entry for entry in own_cache.iterdir() if entry.name.startswith(".")]


def test_arrays_of_another_shape_are_not_taken_from_the_cache():
    cache.store_arrays("x", {"a": torch.zeros(3, 4).numpy()})
    assert cache.load_arrays("x", {"a": (None, 4)})["a"].shape == (3, 4)
    for shape in ((2, 4), (3, 5), (3,), (3, 4, 1)):
        assert cache.load_arrays("x", {"a": shape}) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra hf)")
    cifar_files.parquet(tmp_path / "train.parquet", 10, "train")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHOLEBATCH_CACHE", str(tmp_path / "file"))
    check(wb.data.cifar10("train", tmp_path), 10, "train")


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    put(tmp_path / "cifar10" / "cifar-10-batches-py", cifar_files.python_files(10))
    monkeypatch.setenv("WHOLEBATCH_DATA", str(tmp_path))
    check(wb.data.cifar10("test"), 10, "test")
    with pytest.raises(DataError, match=r"cifar100 was not found: .* does not have it; expected cifar-100-python"):
        wb.data.cifar100("test")
    monkeypatch.delenv("WHOLEBATCH_DATA")
    with pytest.raises(DataError, match=r"WHOLEBATCH_DATA is not set; .*toronto.*root=FOLDER .*wholebatch\[hf\]"):
        wb.data.cifar10("test")
    with pytest.raises(DataError, match="did you mean 'test'"):
        wb.data.cifar10("tst", tmp_path)


def test_a_download_needs_a_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs the library datasets: pip install 'wholebatch\[hf\]'"):
        wb.data.cifar10("train", download=True)


def test_parquet_needs_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"need pyarrow, which comes with: pip install 'wholebatch\[hf\]'"):
        wb.data.cifar10("train", tmp_path)


def test_a_part_is_missing(tmp_path):
    files = cifar_files.python_files(10)
    del files["data_batch_3"]
    with pytest.raises(DataError, match="there is no data_batch_3"):
        wb.data.cifar10("train", cifar_files.tar(tmp_path / "a.tar.gz", files))
    with pytest.raises(DataError, match=r"data_batch_3 cannot be read: No such file"):
        wb.data.cifar10("train", put(tmp_path / "files", files))
    assert len(wb.data.cifar10("test", tmp_path / "files")) == 4


@pytest.mark.parametrize("classes", [10, 100])
def test_damaged_files_are_named(tmp_path, classes):
    python, binary = cifar_files.python_files(classes), cifar_files.binary_files(classes)
    name = {10: "test_batch", 100: "test"}[classes]
    other = cifar_files.python_files(110 - classes)[{10: "test", 100: "test_batch"}[classes]]
    for place, (files, match) in enumerate([
        ({**python, name: python[name][:-40]}, f"{name} is no pickle"),
        ({**python, name: b""}, f"{name} is no pickle"),
        ({**python, name: other}, f"{name} is no part of cifar{classes}"),
        ({**binary, f"{name}.bin": binary[f"{name}.bin"][:-1]}, f"{name}.bin is no part of .* no records of"),
        ({**binary, f"{name}.bin": b"\xff" * len(binary[f"{name}.bin"])}, "is damaged: labels are 0 to"),
    ]):  # fmt: skip
        with pytest.raises(DataError, match=match):
            READ[classes]("test", put(tmp_path / str(place), files))


def test_another_data_set_in_parquet(tmp_path):
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra hf)")
    cifar_files.parquet(tmp_path / "train.parquet", 100, "train")
    with pytest.raises(DataError, match="it has 100 classes, not 10"):
        wb.data.cifar10("train", tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none PAR1")
    with pytest.raises(DataError, match=r"train\.parquet is no parquet file, or is damaged"):
        wb.data.cifar10("train", tmp_path)


@pytest.mark.skipif(not REAL, reason="needs CIFAR-10: say WHOLEBATCH_DATA=FOLDER, the folder that holds cifar10")
def test_the_sixty_thousand_images(own_cache):
    train, test = (wb.data.cifar10(split, REAL) for split in ("train", "test"))
    assert tuple(train.inputs.shape) == (50_000, 3, 32, 32)
    assert tuple(test.inputs.shape) == (10_000, 3, 32, 32)
    assert torch.bincount(train.targets).tolist() == [5_000] * 10
    assert torch.bincount(test.targets).tolist() == [1_000] * 10
    assert train.classes == test.classes == tuple(cifar_files.NAMES[10])
    mean, std = wb.data.statistics(train)
    assert mean == pytest.approx(train.transform.mean, abs=0.01)
    assert std == pytest.approx(train.transform.std, abs=0.01)
    again = wb.data.cifar10("test", REAL)
    assert torch.equal(again.inputs, test.inputs)
