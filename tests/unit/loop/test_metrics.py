"""Metrics: ours, strangers with update, compute and reset, and what is chosen where none is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import wholebatch as wb
from wholebatch.loop import Metrics


class Mistakes:
    """Looks like a metric of torchmetrics."""

    def __init__(self):
        self.resets, self.wrong, self.devices = 0, torch.tensor(0), []

    def to(self, device):
        self.devices.append(device)
        return self

    def update(self, output, target):
        self.wrong = self.wrong + (output.argmax(1) != target).sum()

    def compute(self):
        return self.wrong

    def reset(self):
        self.resets += 1
        self.wrong = torch.tensor(0)


class Collection(Mistakes):
    def compute(self):
        return {"f1": torch.tensor([0.5]), "recall": 0.25}


OUTPUT, TARGET = torch.eye(4)[[0, 1, 2, 2, 3]], torch.tensor([0, 1, 2, 3, 0])


def read(metrics, *pieces):
    for piece in pieces or [slice(0, 2), slice(2, 5)]:
        metrics.add(OUTPUT[piece], TARGET[piece])
    return metrics.values()


def test_none_counts_the_accuracy_of_classes():
    assert read(Metrics()) == {"accuracy": 0.6}
    assert read(Metrics(None, ignore_index=0)) == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("output", "targets"),
    [
        (torch.randn(5, 1), [torch.zeros(5, dtype=torch.int64)]),  # one score is no choice of classes
        (torch.randn(5, 3), [torch.randn(5, 3)]),
        (torch.randn(5, 3), [torch.zeros(5, 3, dtype=torch.int64)]),
        (torch.randn(5, 3), [torch.zeros(5, dtype=torch.bool)]),
        (torch.randn(5, 3), [torch.zeros(5, dtype=torch.int64)] * 2),
        (torch.randn(5, 3), []),
        ((torch.randn(5, 3), 1), [torch.zeros(5, dtype=torch.int64)]),
        (torch.randn(5), [torch.zeros(5, dtype=torch.int64)]),
    ],
)
def test_none_counts_nothing_where_there_are_no_classes(output, targets):
    metrics = Metrics()
    metrics.add(output, *targets)
    assert metrics.values() == {}


def test_positions_are_classified_too():
    metrics = Metrics()
    metrics.add(OUTPUT.T.unsqueeze(0), TARGET.unsqueeze(0))
    assert metrics.values() == {"accuracy": 0.6}


def test_a_stranger_is_reset_moved_once_and_read():
    stranger = Mistakes()
    metrics = Metrics(stranger)
    metrics.reset()
    assert read(metrics) == {"mistakes": 2.0}
    assert (stranger.resets, stranger.devices) == (1, [torch.device("cpu")])
    metrics.reset()
    assert read(metrics, slice(0, 2)) == {"mistakes": 0.0}


def test_a_dict_names_them_and_a_collection_names_its_own():
    assert read(Metrics({"wrong": Mistakes(), "top": wb.Accuracy(4)})) == {"wrong": 2.0, "top": 0.6}
    assert read(Metrics([Collection(), wb.Accuracy(4)])) == {"f1": 0.5, "recall": 0.25, "accuracy": 0.6}


@pytest.mark.parametrize(
    ("metrics", "error", "named"),
    [
        (lambda output, target: 0, wb.InputTypeError, "function.*update"),
        ({"a": 3}, wb.InputTypeError, "'a' is a int"),
        ([wb.Accuracy(4), wb.Accuracy(4)], wb.InputError, "'accuracy', which is taken"),
        ({"loss": wb.Accuracy(4)}, wb.InputError, "'loss', which is taken"),
    ],
)
def test_what_is_no_metric_is_refused(metrics, error, named):
    with pytest.raises(error, match=named):
        Metrics(metrics)


@pytest.mark.parametrize("value", [torch.zeros(3), "many", None])
def test_a_value_is_one_number(value):
    stranger = Mistakes()
    stranger.compute = lambda: value
    with pytest.raises(wb.InputError, match="one number per metric"):
        read(Metrics(stranger))


def test_evaluate_leaves_its_result_in_the_metric_and_train_does_not_touch_it():
    accuracy = wb.Accuracy(4)
    assert wb.evaluate(nn.Identity(), (OUTPUT, TARGET), metrics=accuracy)["accuracy"] == 0.6
    assert accuracy.confusion[3, 2] == 1
    wb.train(
        nn.Linear(4, 4),
        (OUTPUT[:3], TARGET[:3]),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD,
        epochs=1,
        metrics=accuracy,
        eval_data=(OUTPUT, TARGET),
        display=False,
    )
    assert accuracy.count == 5
