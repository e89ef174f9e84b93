"""Inputs of another dtype than the model's are one clear error; other errors stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import wholebatch as wb


@pytest.mark.parametrize(
    "make", [nn.Linear, lambda i, o: nn.Sequential(nn.Unflatten(1, (i, 1, 1)), nn.Conv2d(i, o, 1))]
)
@pytest.mark.parametrize(
    ("x", "repair"),
    [
        (
            np.zeros((5, 3)),
            r"float64 of shape \(\d, 3\).*float32.*x\.to\(torch\.float32\).*model\.to\(torch\.float64\)",
        ),
        (torch.zeros(5, 3, dtype=torch.uint8), r"uint8 of shape.*x\.to\(torch\.float32\) \("),
        (torch.zeros(5, 3, dtype=torch.float16), r"float16.*model\.to\(torch\.float16\)"),
    ],
)
@pytest.mark.parametrize("entry", ["train", "stream", "evaluate"])
def test_the_dtypes_are_named(make, x, repair, entry):
    model, y = make(3, 2), np.zeros(5, int)
    data = torch.utils.data.DataLoader(list(zip(x, y, strict=True)), batch_size=2) if entry == "stream" else (x, y)
    with pytest.raises(wb.InputError, match=repair):
        run(entry, model, data)


def run(entry, model, data):
    if entry == "evaluate":
        return wb.evaluate(model, data)
    return wb.train(model, data, loss=nn.CrossEntropyLoss(), optimizer=torch.optim.SGD, display=False)


def test_another_error_of_the_model_stays_as_it_is():
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        wb.evaluate(nn.Linear(4, 2), (torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)))

    class Broken(nn.Linear):
        def forward(self, x):
            raise RuntimeError("expected scalar type, says somebody")

    with pytest.raises(RuntimeError, match="says somebody") as caught:
        wb.evaluate(Broken(3, 2), (torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)))
    assert not isinstance(caught.value, wb.InputError)
