"""Hugging Face data sets: parquet files here, and the library's own objects where it is installed."""

import io

import cifar_files
import numpy as np
import pytest
import torch
from PIL import Image

import wholebatch as wb
from wholebatch.core.errors import DataError, InputTypeError

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (extra hf)")
pytest.importorskip("pyarrow.parquet")


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_files_of_a_split_are_read_one_after_the_other(tmp_path, picture):
    for part in range(2):
        images = [{"bytes": encoded(picture(3 * part + n)), "path": "x"} for n in range(3)]
        write(tmp_path / f"train-0000{part}-of-00002.parquet", image=images, label=[part, 1, 2])
    write(tmp_path / "validation" / "0000.parquet", image=[encoded(picture(9))], label=[0])
    train, test, everything = (wb.data.hugging_face(tmp_path, split) for split in ("train", "test", None))
    assert [len(train), len(test), len(everything)] == [6, 1, 7]
    assert train.targets.tolist() == [0, 1, 2, 1, 1, 2]
    assert train.classes == ("0", "1", "2")
    for index in range(6):
        expected = torch.from_numpy(np.array(picture(index))).permute(2, 0, 1)
        assert torch.equal(train[index][0], expected)
    assert train.name(4).startswith("image 4 of ")
    assert len(wb.data.hugging_face(tmp_path / "train-00000-of-00002.parquet")) == 3


def test_names_of_classes_and_whole_tensors(tmp_path):
    data = wb.data.hugging_face(cifar_files.parquet(tmp_path / "train.parquet", 10, "train"), "train")
    assert data.classes == tuple(cifar_files.NAMES[10])
    assert torch.equal(data.in_memory().inputs, torch.from_numpy(cifar_files.content(10, "train")[0]))


def test_a_damaged_image_is_named_or_skipped(tmp_path, picture):
    good = encoded(picture(0))
    path = write(tmp_path / "a.parquet", image=[good, good[:50], None, good], label=[0, 1, 2, 3])
    data = wb.data.hugging_face(path)
    with pytest.raises(DataError, match=r"image 1 of .*a\.parquet cannot be read, it is damaged"):
        data[1]
    with pytest.raises(DataError, match=r"image 2 of .*a\.parquet is empty"):
        data[2]
    with pytest.warns(UserWarning, match="2 of 4 images"):
        kept = wb.data.hugging_face(path, on_error="skip")
    assert kept.targets.tolist() == [0, 3]
    assert len(kept.classes) == 4


def test_workers_read_it_as_well(tmp_path):
    data = wb.data.hugging_face(cifar_files.parquet(tmp_path / "train.parquet", 10, "train"))
    alone = [labels.tolist() for _, labels in wb.data.BatchLoader(data, 8)]
    with wb.data.BatchLoader(data, 8, workers=2) as loader:
        assert [labels.tolist() for _, labels in loader] == alone


def test_mistakes(tmp_path, picture):
    image = [encoded(picture(0))]
    with pytest.raises(DataError, match="no column 'imgae' for the image; did you mean 'image'"):
        wb.data.hugging_face(write(tmp_path / "a.parquet", image=image, label=[0]), image="imgae")
    with pytest.raises(DataError, match=r"no column .* for the label; it has image, text"):
        wb.data.hugging_face(write(tmp_path / "a.parquet", image=image, text=["a"]))
    with pytest.raises(DataError, match="column 'label' is of object, expected whole numbers"):
        wb.data.hugging_face(write(tmp_path / "a.parquet", image=image, label=["cat"]))
    with pytest.raises(DataError, match="column 'image' is of int64, expected encoded images"):
        wb.data.hugging_face(write(tmp_path / "a.parquet", image=[3], label=[0]))
    with pytest.raises(DataError, match="the labels in 'label' hold -1"):
        wb.data.hugging_face(write(tmp_path / "a.parquet", image=image, label=[-1]))
    with pytest.raises(DataError, match=r"there is no .*none\.parquet"):
        wb.data.hugging_face(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no parquet file of the part 'train'"):
        wb.data.hugging_face(tmp_path / "empty", "train")
    with pytest.raises(InputTypeError, match=r"expected a datasets\.Dataset, got int"):
        wb.data.hugging_face(3)


@pytest.mark.filterwarnings("ignore")  # of the library and of what it stands on
def test_objects_of_the_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the library datasets (extra hf)")
    path = cifar_files.parquet(tmp_path / "in" / "train.parquet", 10, "train")
    made = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    images, labels = cifar_files.content(10, "train")
    for data in (
        wb.data.hugging_face(made),
        wb.data.hugging_face(made.cast_column("img", datasets.Image())),
        wb.data.hugging_face(datasets.DatasetDict({"train": made, "validation": made}), "test"),
    ):
        assert data.classes == tuple(cifar_files.NAMES[10])
        assert data.targets.tolist() == labels.tolist()
        assert torch.equal(data.in_memory().inputs, torch.from_numpy(images))
    made.save_to_disk(str(tmp_path / "saved"))
    assert len(wb.data.hugging_face(tmp_path / "saved")) == 20
    with pytest.raises(DataError, match="no part 'dev'; it has train"):
        wb.data.hugging_face(datasets.DatasetDict({"train": made}), "dev")
