import math

import pytest

from wholebatch.core.record import RunShape
from wholebatch.display.fields import epoch_fields, fit, fold, join, width_of

_RUN = RunShape(epochs=40, steps_per_epoch=3, samples_per_epoch=1437, batch_size=512, device="cpu", evaluates=True)
_TRAIN = {"epoch": 3, "loss": 0.2143, "accuracy": 0.9412, "lr": 0.05}
_TEST = {"epoch": 3, "loss": 0.3, "accuracy": 0.95}


@pytest.mark.parametrize("width", range(20, 120))
def test_every_width_is_kept(width):
    fields = epoch_fields(_RUN, _TRAIN, _TEST, 12340)
    assert len(join(fit(fields, width))) == width_of(fit(fields, width)) <= width
    folded = fold(fields, width)
    assert all(len(join(line)) <= width for line in folded)
    assert sum(len(line) for line in folded) == len(fields)  # folding loses nothing


def test_narrow_lines_keep_what_matters():
    fields = epoch_fields(_RUN, _TRAIN, _TEST, 12340)
    assert join(fit(fields, 39)) == " 3/40  loss 0.2143  test 95.00 %"
    assert join(fit(fields, 60)) == " 3/40  loss 0.2143  acc 94.12 %  test 95.00 %  lr 0.0500"


def test_what_is_missing_is_not_shown():
    assert join(epoch_fields(_RUN, {"epoch": 1, "loss": math.nan}, None, None)) == "epoch  1/40  loss nan"
    assert join(epoch_fields(_RUN, None, {"epoch": 1, "loss": 2.0}, None)) == "epoch  1/40  test loss 2.0000"


def test_other_metrics_of_the_test_split_are_shown():
    test = {**_TEST, "f1": 0.5, "kind": "epoch", "split": "test", "step": 9, "samples": 9, "note": "text"}
    assert join(epoch_fields(_RUN, _TRAIN, test, None)) == (
        "epoch  3/40  loss 0.2143  accuracy 94.12 %  test accuracy 95.00 %  test f1 0.5000  lr 0.0500"
    )
