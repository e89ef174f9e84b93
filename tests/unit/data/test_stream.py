import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from wholebatch.core.errors import DataError
from wholebatch.data import StreamLoader

X, Y = torch.arange(20.0).view(10, 2), torch.arange(10)


class Stream(IterableDataset):
    def __init__(self, samples=10):
        self.samples, self.epochs = samples, []

    def __iter__(self):
        return iter([(X[index], index) for index in range(self.samples)])

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_batches_of_an_iterable_data_set():
    stream = Stream()
    loader = StreamLoader(stream, 4)
    for _ in range(2):
        assert [targets.tolist() for _, targets in loader] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert loader.epoch == 2
    assert stream.epochs == [0, 1]
    assert loader.samples is None
    with pytest.raises(TypeError, match="known only by reading"):
        len(loader)


def test_windows_are_cut_and_come_again():
    windows = list(StreamLoader(Stream(), 7).windows(2))
    assert [window.samples for window in windows] == [7, 3]
    assert [window.indices.tolist() for window in windows] == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
    for _ in range(2):
        assert [targets.tolist() for _, targets in windows[0]] == [[0, 1], [2, 3], [4, 5, 6]]
    assert torch.equal(windows[1].whole()[0], X[7:])


def test_batches_of_a_data_loader():
    source = DataLoader(TensorDataset(X, Y), batch_size=4)
    loader = StreamLoader(source)
    assert (len(loader), loader.samples, loader.batch_size) == (3, 10, 4)
    pieces = [[targets.tolist() for _, targets in window] for window in loader.windows(3)]
    assert pieces == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert StreamLoader(DataLoader(TensorDataset(X, Y), 4, drop_last=True)).samples is None


def test_the_transform_is_keyed_by_place():
    seen = []

    def note(batch, *, seed, epoch, indices):
        seen.append((seed, epoch, indices.tolist()))
        return batch

    loader = StreamLoader(Stream(4), 4, seed=6, transform=note)
    for _ in range(2):
        for window in loader.windows(2):
            list(window)
    assert seen == [(6, 0, [0, 1]), (6, 0, [2, 3]), (6, 1, [0, 1]), (6, 1, [2, 3])]


def test_state_is_the_epoch():
    loader = StreamLoader(Stream(), 4)
    next(iter(loader))
    assert loader.state_dict() == {"epoch": 0}
    list(loader)
    other = StreamLoader(Stream(), 4)
    other.load_state_dict(loader.state_dict())
    assert other.epoch == 1
    with pytest.raises(DataError, match="whole numbers"):
        other.load_state_dict({})


def test_refusals():
    with pytest.raises(DataError, match="say batch_size"):
        StreamLoader(Stream())
    with pytest.raises(DataError, match="batch_size is 8, but the DataLoader makes batches of 4"):
        StreamLoader(DataLoader(TensorDataset(X, Y), 4), 8)
    with pytest.raises(DataError, match="its own collate_fn"):
        StreamLoader(DataLoader(TensorDataset(X, Y), 4), collate=list)
    with pytest.raises(DataError, match="gave nothing in epoch 0"):
        list(StreamLoader(Stream(0), 4))
    with pytest.raises(DataError, match="cut along axis 0"):
        list(StreamLoader(Stream(), 4, collate=lambda samples: "no tensor"))
    with pytest.raises(DataError, match="pass collate="):
        list(StreamLoader([(torch.zeros(1),), (torch.zeros(2),)], 2))
