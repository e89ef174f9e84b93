from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data import ArrayDataset


def test_inputs_targets_and_samples():
    inputs, targets = torch.arange(12.0).view(3, 4), torch.tensor([2, 0, 1])
    data = ArrayDataset(inputs, targets, classes=["a", "b", "c"])
    assert len(data) == 3
    assert data.classes == ("a", "b", "c")
    assert data.inputs is inputs
    assert data.targets is targets
    image, label = data[-1]
    assert torch.equal(image, inputs[2])
    assert label == 1
    assert [int(label) for _, label in data] == [2, 0, 1]
    with pytest.raises(IndexError):
        data[3]
    first, second = next(iter(DataLoader(data, 2)))
    assert torch.equal(first, inputs[:2])
    assert second.tolist() == [2, 0]


def test_take_copies_rows_in_the_order_asked_for():
    inputs, targets = torch.arange(12.0).view(3, 4), torch.tensor([2, 0, 1])
    data = ArrayDataset(inputs, targets)
    rows, labels = data.take(torch.tensor([2, 0, 2]))
    assert torch.equal(rows, inputs[[2, 0, 2]])
    assert labels.tolist() == [1, 2, 1]
    rows.zero_()
    assert inputs[2, 3] == 11


def test_one_part_is_the_batch_itself():
    data = ArrayDataset(torch.arange(3.0))
    assert data.take(torch.tensor([1])).tolist() == [1.0]
    assert data.inputs is data.batch
    assert data.targets is None


def test_nested_parts_are_kept_as_what_they_are():
    Pair = namedtuple("Pair", "left right")
    data = ArrayDataset({"x": np.arange(3.0), "pair": Pair([1, 2, 3], np.eye(3)), "scale": 0.5, "all": torch.tensor(7)})
    batch = data.take(torch.tensor([2, 1]))
    assert batch["x"].tolist() == [2.0, 1.0]
    assert batch["pair"].left.tolist() == [3, 2]
    assert batch["pair"].right.tolist() == np.eye(3)[[2, 1]].tolist()
    assert (batch["scale"], int(batch["all"])) == (0.5, 7)
    assert data[1]["pair"].left == 2


def test_arrays_share_memory_whatever_their_layout():
    array = np.arange(6.0).reshape(3, 2)
    data = ArrayDataset(array, array[::-1])
    array[0, 0] = 9
    assert data.inputs[0, 0] == 9
    assert data.targets[0].tolist() == [4.0, 5.0]
    frozen = np.arange(3)
    frozen.flags.writeable = False
    assert ArrayDataset(frozen).inputs.tolist() == [0, 1, 2]
    assert ArrayDataset(np.arange(3, dtype=">i4")).inputs.tolist() == [0, 1, 2]


def test_bytes_per_sample():
    assert ArrayDataset(torch.zeros(5, 2, 3), torch.zeros(5, dtype=torch.int64)).bytes_per_sample == 2 * 3 * 4 + 8


def test_other_lengths_are_named():
    with pytest.raises(DataError, match=r"inputs 4 \(4, 2\), targets 3 \(3,\)"):
        ArrayDataset(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(DataError, match=r"data\['y'\] 3 \(3,\)"):
        ArrayDataset({"x": torch.zeros(4), "y": torch.zeros(3)})


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ((torch.zeros(0, 3), torch.zeros(0)), r"empty: data\[0\] has shape \(0, 3\)"),
        ((torch.tensor(1.0),), "one row per sample"),
        ((), "one row per sample"),
        ((torch.zeros(2), ["a", "b"]), r"data\[1\] is a list of strings"),
        ((np.array([None, 1]),), "array of object"),
    ],
)
def test_what_cannot_be_indexed(parts, match):
    with pytest.raises(DataError, match=match):
        ArrayDataset(*parts)


def test_what_is_no_data():
    with pytest.raises(InputTypeError, match=r"data\[1\] is a object"):
        ArrayDataset(torch.zeros(2), object())


def test_repr_names_shapes():
    assert repr(ArrayDataset(torch.zeros(2, 3))) == "ArrayDataset(2 samples: float32[2, 3])"
