import pytest

from wholebatch.core.cuts import bounds


def sizes(*arguments):
    return [stop - start for start, stop in bounds(*arguments)]


@pytest.mark.parametrize(
    ("samples", "micro_batch", "expected"),
    [
        (0, 3, []),
        (1, 4, [1]),
        (1, 1, [1]),
        (3, 1, [1, 1, 1]),
        (8, 4, [4, 4]),
        (9, 4, [4, 3, 2]),
        (10, 4, [4, 4, 2]),
        (7, 3, [3, 2, 2]),
        (4, 3, [2, 2]),
        (3, 2, [3]),
        (5, 2, [2, 3]),
        (6, 5, [3, 3]),
        (5, 9, [5]),
        (2, 9, [2]),
    ],
)
def test_sizes(samples, micro_batch, expected):
    assert sizes(samples, micro_batch) == expected


def test_every_cut_is_whole_and_no_piece_is_single():
    for samples in range(1, 40):
        for micro_batch in range(1, 42):
            for avoid in (True, False):
                found = bounds(samples, micro_batch, avoid)
                assert [place for cut in found for place in range(*cut)] == list(range(samples))
                widths = [stop - start for start, stop in found]
                assert max(widths) <= micro_batch + (avoid and micro_batch == 2 and samples % 2)
                if avoid and micro_batch > 1 and samples > 1:
                    assert min(widths) > 1
                if not avoid:
                    assert widths[:-1] == [micro_batch] * (len(widths) - 1)


def test_the_list_is_the_callers():
    bounds(9, 4).clear()
    assert len(bounds(9, 4)) == 3


@pytest.mark.parametrize(("samples", "micro_batch"), [(-1, 2), (4, 0), (4, -2)])
def test_impossible_cuts(samples, micro_batch):
    with pytest.raises(ValueError, match="at least 1"):
        bounds(samples, micro_batch)
