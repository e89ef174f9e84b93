"""Batch sizes as a function of the place in training."""

from __future__ import annotations

from typing import Any

import pytest

from wholebatch.core.batch_sizes import BatchSizes
from wholebatch.core.errors import ConfigError, InputError, InputTypeError


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("spec", "unit"),
    [(4, "epoch"), ({0: 2, 1: 5}, "epoch"), ({5: 7, 0: 2}, "samples"), (lambda n: 3 + n % 2, "samples")],
)
def test_cuts_are_slices_one_after_the_other_from_any_place(spec: Any, unit: str, drop_last: bool) -> None:
    sizes = BatchSizes(spec, unit)
    for epoch in range(3):
        cuts = sizes.cuts(epoch, 13, drop_last=drop_last)
        assert [begin for begin, _ in cuts] == [0, *(end for _, end in cuts)][:-1]
        assert drop_last or cuts[-1][1] == 13
        assert sizes.steps(epoch, 13, drop_last) == len(cuts)
        for place, (begin, _) in enumerate(cuts):
            assert sizes.cuts(epoch, 13, begin, drop_last) == cuts[place:]


def test_a_size_holds_from_its_beginning_on() -> None:
    by_epoch, by_samples = BatchSizes({10: 256, 0: 128}), BatchSizes({0: 8, 60: 16}, "samples")
    assert [by_epoch.at(epoch, 0, 100) for epoch in (0, 9, 10, 99)] == [128, 128, 256, 256]
    assert [by_samples.at(1, consumed, 50) for consumed in (0, 9, 10)] == [8, 8, 16]
    assert (by_epoch.first, by_epoch.largest) == (128, 256)


@pytest.mark.parametrize(
    "spec", [{}, {1: 8}, {0: 0}, {0: 8, "2": 9}, {0: 8, -1: 9}, {0: True}, 0, "8", None, 2.5, lambda n: 0]
)
def test_what_is_no_schedule_is_refused(spec: Any) -> None:
    with pytest.raises((InputError, InputTypeError), match="batch_size"):
        BatchSizes(spec)
    with pytest.raises(ConfigError, match="did you mean 'epoch'"):
        BatchSizes(8, "epochs")
