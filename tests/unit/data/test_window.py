import pytest
import torch

from wholebatch.data import BatchLoader, Window

X, Y = torch.arange(18.0).view(9, 2), torch.arange(9)


def make(at_once, **options):
    return Window(lambda start, stop: (X[start:stop], Y[start:stop]), torch.arange(9), 2, at_once=at_once, **options)


@pytest.mark.parametrize("at_once", [True, False])
def test_pieces_are_the_whole_and_come_again(at_once):
    window = make(at_once, micro_batch=4)
    for _ in range(2):
        pieces = list(window)
        assert [len(targets) for _, targets in pieces] == [4, 3, 2]
        assert torch.equal(torch.cat([inputs for inputs, _ in pieces]), X)
    assert torch.equal(window.whole()[0], X)
    assert (window.samples, window.position, window.epoch, len(window)) == (9, 0, 2, 3)


@pytest.mark.parametrize("at_once", [True, False])
def test_without_micro_batch_there_is_one_piece(at_once):
    window = make(at_once)
    ((inputs, _),) = window
    assert torch.equal(inputs, X)
    assert len(window) == 1


@pytest.mark.parametrize("at_once", [True, False])
def test_finish_sees_each_piece_and_its_indices(at_once):
    window = make(at_once, micro_batch=4, finish=lambda batch, indices: (batch[1], indices))
    for targets, indices in [*window, window.whole()]:
        assert torch.equal(targets, indices)


def test_views_of_a_batch_that_is_no_tuple():
    window = Window(lambda start, stop: {"x": X[start:stop], "n": 3}, torch.arange(9), 0, 4, True)
    assert [(len(piece["x"]), piece["n"]) for piece in window] == [(4, 3), (3, 3), (2, 3)]


def test_windows_of_a_loader_are_its_batches():
    loader, other = (BatchLoader((X, Y), 5, seed=4) for _ in range(2))
    for window, (inputs, targets) in zip(loader.windows(2), other, strict=True):
        assert torch.equal(window.indices, targets)
        assert torch.equal(torch.cat([piece for piece, _ in window]), inputs)
        assert window.epoch == 0


def test_device_is_reached_before_the_transform():
    seen = []

    def note(batch, *, seed, epoch, indices):
        seen.append((batch[0].device.type, indices.device.type))
        return batch

    loader = BatchLoader((X, Y), 9, transform=note)
    list(next(loader.windows(5, device="meta")))
    assert seen == [("meta", "cpu")] * 2
    assert next(BatchLoader((X, Y), 9).windows(device=torch.device("meta"))).whole()[0].device.type == "meta"
