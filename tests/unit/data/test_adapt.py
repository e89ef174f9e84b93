import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data import ArrayDataset, BatchLoader, StreamLoader, as_dataset, as_loader
from wholebatch.data.adapt import has_random_access

X, Y = torch.arange(8.0).view(4, 2), torch.arange(4)


class Squares(Dataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.tensor([float(index)]), index * index


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.tensor([float(i)]), i) for i in range(5)])


@pytest.mark.parametrize(
    "data",
    [(X, Y), [X, Y], (X.numpy(), Y.numpy()), (X, [0, 1, 2, 3]), TensorDataset(X, Y), ArrayDataset(X, Y)],
    ids=["tuple", "list", "numpy", "labels in a list", "TensorDataset", "ArrayDataset"],
)
def test_pairs_are_indexed_as_tensors(data):
    found = as_dataset(data)
    assert isinstance(found, ArrayDataset)
    inputs, targets = found.take(torch.tensor([3, 1]))
    assert torch.equal(inputs, X[[3, 1]])
    assert targets.tolist() == [3, 1]


def test_tensor_mapping_and_single_tensor_dataset():
    assert torch.equal(as_dataset(X).take(torch.tensor([1])), X[1:2])
    assert as_dataset({"x": X, "y": Y}).take(torch.tensor([1]))["y"].tolist() == [1]
    (only,) = as_dataset(TensorDataset(X)).take(torch.tensor([1]))
    assert torch.equal(only, X[1:2])


def test_what_reads_itself_is_kept():
    for data in (Squares(), Stream(), DataLoader(Squares()), BatchLoader((X, Y), 2), [(X[0], 1), (X[1], 0)]):
        assert as_dataset(data) is data


def test_random_access():
    assert has_random_access(Squares())
    assert not any(has_random_access(data) for data in (Stream(), DataLoader(Squares()), BatchLoader((X, Y), 2)))


def test_refusals():
    with pytest.raises(DataError, match="read only once"):
        as_dataset(x for x in range(3))
    with pytest.raises(DataError, match="empty"):
        as_dataset([])
    with pytest.raises(DataError, match=r"inputs 4 \(4, 2\), targets 3 \(3,\)"):
        as_dataset((X, Y[:3]))
    for nothing in (3, "digits", None):
        with pytest.raises(InputTypeError, match="cannot train on"):
            as_dataset(nothing)


def test_loader_that_fits():
    assert isinstance(as_loader((X, Y), 2), BatchLoader)
    assert isinstance(as_loader(Squares(), 2), BatchLoader)
    assert isinstance(as_loader(Stream(), 2), StreamLoader)
    assert isinstance(as_loader(DataLoader(Squares(), 2), None), StreamLoader)
    loader = BatchLoader((np.zeros((4, 2)), np.zeros(4)), 2)
    assert as_loader(loader, 2) is loader
    assert as_loader(loader, None) is loader


def test_loader_arguments_reach_it():
    loader = as_loader((X, Y), 3, seed=5, shuffle=False)
    assert (loader.seed, loader.shuffle, loader.batch_size) == (5, False, 3)
    stream = as_loader(Stream(), 3, seed=5)
    assert (stream.seed, stream.batch_size) == (5, 3)


def test_loader_refusals():
    with pytest.raises(DataError, match="batch_size is 4, but the loader given has 2"):
        as_loader(BatchLoader((X, Y), 2), 4)
    with pytest.raises(DataError, match="give transform and collate to the BatchLoader"):
        as_loader(BatchLoader((X, Y), 2), 2, transform=lambda batch, **_: batch)
    with pytest.raises(DataError, match="say batch_size"):
        as_loader((X, Y), None)
