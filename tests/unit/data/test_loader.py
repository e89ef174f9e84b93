import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data import ArrayDataset, BatchLoader, Compose, epoch_order
from wholebatch.data import loader as loader_file

X, Y = torch.arange(22.0, dtype=torch.float64).view(11, 2), torch.arange(11)


class Rows(Dataset):
    """Samples one by one, counting how often each is fetched."""

    def __init__(self, rows=11):
        self.rows, self.fetched = rows, []

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        self.fetched.append(index)
        return X[index], index


def labels(batches):
    return [batch[1].tolist() for batch in batches]


def test_batches_are_slices_of_the_epochs_order():
    loader = BatchLoader((X, Y), 4, seed=3)
    for epoch in range(3):
        assert loader.epoch == epoch
        assert labels(loader) == [part.tolist() for part in epoch_order(11, 3, epoch).split(4)]
    assert loader.epoch == 3
    assert loader.consumed == 0


def test_rows_belong_to_their_labels():
    for inputs, targets in BatchLoader((X, Y), 4):
        assert torch.equal(inputs, X[targets])


def test_without_shuffle_and_with_drop_last():
    loader = BatchLoader((X, Y), 4, shuffle=False, drop_last=True)
    assert len(loader) == 2
    assert labels(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert loader.epoch == 1
    assert labels(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_length_and_attributes():
    loader = BatchLoader((X, Y), 4)
    assert (len(loader), loader.samples, loader.batch_size) == (3, 11, 4)
    assert isinstance(loader.dataset, ArrayDataset)
    assert len(BatchLoader((X, Y), 11)) == 1
    assert labels(BatchLoader((X, Y), 99, shuffle=False)) == [list(range(11))]


def test_state_counts_the_batch_in_hand():
    loader = BatchLoader((X, Y), 4, seed=1)
    states = [loader.state_dict()["consumed"] for _ in loader]
    assert states == [4, 8, 11]
    assert loader.state_dict() == {"epoch": 1, "consumed": 0, "seed": 1, "samples": 11, "shuffle": True}


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resume_goes_on_behind_the_batch_in_hand(after):
    whole = BatchLoader((X, Y), 4, seed=1)
    expected = labels(whole) + labels(whole)
    loader = BatchLoader((X, Y), 4, seed=1)
    for seen, _ in enumerate(loader, 1):
        if seen == after:
            break
    other = BatchLoader((X, Y), 4, seed=1)
    other.load_state_dict(loader.state_dict())
    for resumed in (loader, other):
        assert labels(resumed) + labels(resumed) == expected[after:]
        assert resumed.epoch == 2


def test_state_without_guards_and_numpy_numbers():
    loader = BatchLoader((X, Y), 4, shuffle=False)
    loader.load_state_dict({"epoch": np.int64(2), "consumed": 9})
    assert labels(loader) == [[9, 10]]
    assert loader.epoch == 3


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({"epoch": 0, "consumed": 0, "seed": 2}, "seed=2, this loader has seed=1"),
        ({"epoch": 0, "consumed": 0, "samples": 12}, "samples=12"),
        ({"epoch": 0, "consumed": 0, "shuffle": False}, "shuffle=False"),
        ({"epoch": 0, "consumed": 12}, "12 samples consumed"),
        ({"epoch": -1, "consumed": 0}, "epoch -1"),
        ({"epoch": 0, "consumed": -1}, "-1 samples"),
        ({"epoch": 0.5, "consumed": 0}, "whole numbers"),
        ({}, "whole numbers"),
        (None, "whole numbers"),
    ],
)
def test_state_of_another_loader(state, match):
    loader = BatchLoader((X, Y), 4, seed=1)
    with pytest.raises(DataError, match=match):
        loader.load_state_dict(state)
    assert (loader.epoch, loader.consumed) == (0, 0)


@pytest.mark.parametrize("size", [0, -3])
def test_batch_size_below_one(size):
    with pytest.raises(DataError, match=f"batch_size must be at least 1, got {size}"):
        BatchLoader((X, Y), size)
    with pytest.raises(DataError, match=f"micro_batch must be at least 1, got {size}"):
        BatchLoader((X, Y), 2).windows(size)


@pytest.mark.parametrize("size", [True, 2.0, "4", None])
def test_batch_size_no_whole_number(size):
    with pytest.raises(InputTypeError, match="batch_size must be a whole number"):
        BatchLoader((X, Y), size)


def test_batch_size_of_numpy():
    assert BatchLoader((X, Y), np.int64(4)).batch_size == 4


def test_data_that_cannot_be_loaded():
    with pytest.raises(DataError, match="the data set is empty"):
        BatchLoader(Rows(0), 4)
    with pytest.raises(DataError, match="drop_last leaves nothing: 11 samples"):
        BatchLoader((X, Y), 12, drop_last=True)

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(DataError, match="StreamLoader"):
        BatchLoader(Stream(), 4)


def test_map_style_samples_are_collated_in_order():
    rows = Rows()
    loader = BatchLoader(rows, 4, seed=3)
    got = list(loader)
    assert rows.fetched == epoch_order(11, 3, 0).tolist()
    for inputs, targets in got:
        assert torch.equal(inputs, X[targets])


def test_map_style_micro_batches_are_fetched_when_asked_for():
    rows = Rows()
    window = next(BatchLoader(rows, 8, shuffle=False).windows(4))
    assert rows.fetched == []
    pieces = iter(window)
    next(pieces)
    assert rows.fetched == [0, 1, 2, 3]


def test_getitems_is_used_where_it_exists():
    class Many(Rows):
        def __getitems__(self, indices):
            return [(X[index], -index) for index in indices]

    assert labels(BatchLoader(Many(), 6, shuffle=False))[0] == [0, -1, -2, -3, -4, -5]


def test_collate_of_ones_own_also_for_arrays():
    collate = lambda samples: {"n": len(samples), "y": torch.stack([label for _, label in samples])}  # noqa: E731
    first = next(iter(BatchLoader((X, Y), 4, shuffle=False, collate=collate)))
    assert first["n"] == 4
    assert first["y"].tolist() == [0, 1, 2, 3]


def test_samples_that_do_not_fit_together():
    ragged = [(torch.zeros(size), 0) for size in (1, 2)]
    with pytest.raises(DataError, match=r"list could not be put into one batch: .* pass collate="):
        next(iter(BatchLoader(ragged, 2)))


def test_own_transform_and_the_data_sets():
    def double(batch, *, seed, epoch, indices):
        return batch[0] * 2, batch[1]

    def note(batch, *, seed, epoch, indices):
        assert (seed, epoch) == (7, 0)
        assert torch.equal(indices, batch[1])
        return batch[0] + 1, batch[1]

    data = ArrayDataset(X, Y, transform=double)
    assert torch.equal(next(iter(BatchLoader(data, 11, shuffle=False)))[0], X * 2)
    assert torch.equal(next(iter(BatchLoader(data, 11, shuffle=False, transform=Compose())))[0], X)
    loader = BatchLoader(data, 11, seed=7, transform=note)
    for inputs, targets in next(loader.windows(4)):
        assert torch.equal(inputs, X[targets] + 1)


def test_a_state_loaded_meanwhile_ends_the_running_epoch():
    loader = BatchLoader((X, Y), 4)
    running = iter(loader)
    next(running)
    loader.load_state_dict({"epoch": 5, "consumed": 4})
    assert list(running) == []
    assert (loader.epoch, loader.consumed) == (5, 4)


def test_small_batches_are_gathered_at_once_and_large_ones_by_piece(monkeypatch):
    calls = []
    data = ArrayDataset(X, Y)
    take = data.take
    data.take = lambda indices: calls.append(len(indices)) or take(indices)
    list(next(BatchLoader(data, 8).windows(4)))
    assert calls == [8]
    monkeypatch.setattr(loader_file, "AT_ONCE_BYTES", 8 * data.bytes_per_sample - 1)
    calls.clear()
    list(next(BatchLoader(data, 8).windows(4)))
    assert calls == [4, 4]


def test_windows_are_cut_at_multiples_of_the_loaders_align_or_of_one_said_here():
    loader = BatchLoader((torch.arange(9),), 9, shuffle=False, align=2)

    def lengths(**options):
        return [len(piece[0]) for window in loader.windows(4, **options) for piece in window]

    assert lengths() == [4, 5]
    assert lengths(align=1) == [4, 3, 2]
