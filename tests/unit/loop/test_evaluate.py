"""Evaluation: every sample once, by weighted sums, and nothing is changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import wholebatch as wb
from wholebatch.data import BatchLoader


def batch(samples=23, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (samples,), generator=generator)


class Noisy(nn.Module):
    """Batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5)).double()

    def forward(self, x):
        return self.body(x)


@pytest.mark.parametrize("batch_size", [1, 7, 23, 100, None])
def test_the_mean_is_that_of_all_samples_whatever_fits_at_once(batch_size):
    x, y = batch()
    y[3:9] = -100
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0, 0.1], dtype=torch.float64)
    model, loss = nn.Linear(4, 5).double(), nn.CrossEntropyLoss(weight=weight)
    found = wb.evaluate(model, (x, y), loss=loss, batch_size=batch_size)
    kept = y != -100
    assert found == {
        "loss": pytest.approx(loss(model(x), y).item(), rel=1e-12),
        "accuracy": pytest.approx((model(x).argmax(1) == y)[kept].double().mean().item(), abs=1e-15),
        "samples": 23.0,
    }
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_a_loss_that_is_a_sum_is_the_sum_over_the_data(batch_size):
    x, y = batch()
    model = nn.Linear(4, 5).double()
    expected = F.cross_entropy(model(x), y, reduction="sum").item()
    loss = nn.CrossEntropyLoss(reduction="sum")
    assert wb.evaluate(model, (x, y), loss=loss, batch_size=batch_size)["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_with_batch_norm_and_dropout_is_left_as_it_was(fails):
    x, y = batch()
    model = Noisy()
    model.body[1].eval()  # one layer is frozen
    modes = [layer.training for layer in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if fails:
        model.body[3].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            wb.evaluate(model, (x, y))
    else:
        first = wb.evaluate(model, (x, y), loss=nn.CrossEntropyLoss(), batch_size=5)
        assert first["loss"] == pytest.approx(
            wb.evaluate(model, (x, y), loss=nn.CrossEntropyLoss(), batch_size=23)["loss"], rel=1e-12
        )
    assert [layer.training for layer in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_model_runs_in_inference_mode():
    seen = []
    model = nn.Linear(4, 5).double()
    model.register_forward_hook(lambda *_: seen.append((torch.is_inference_mode_enabled(), model.training)))
    wb.evaluate(model, batch())
    assert seen == [(True, False)]
    assert not torch.is_inference_mode_enabled()


class Parts(nn.Module):
    """Takes its input in two parts, as a dict or as a list."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5).double()

    def forward(self, parts):
        return self.linear(torch.cat(list(parts.values()) if isinstance(parts, dict) else list(parts), 1))


class Items(Dataset):
    """Samples of nested inputs, one by one."""

    def __init__(self, x, y, nest):
        self.x, self.y, self.nest = x, y, nest

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.nest(self.x[index]), self.y[index]


def as_dict(x):
    return {"left": x[..., :1], "right": x[..., 1:]}


def as_list(x):
    return [x[..., :1], x[..., 1:]]


@pytest.mark.parametrize("nest", [as_dict, as_list])
@pytest.mark.parametrize("kind", ["memory", "dataset", "loader"])
def test_inputs_may_be_a_list_or_a_dict(nest, kind):
    x, y = batch()
    items = Items(x, y, nest)
    data = {"memory": (nest(x), y), "dataset": items, "loader": DataLoader(items, batch_size=6)}[kind]
    model = Parts()
    expected = wb.evaluate(model.linear, (x, y), loss=nn.CrossEntropyLoss())
    assert wb.evaluate(model, data, loss=nn.CrossEntropyLoss()) == pytest.approx(expected, rel=1e-12)


def test_a_function_of_model_and_batch_gives_the_loss():
    x, _ = batch()

    def loss(model, batch):
        return (model(batch["x"]) - batch["y"]) ** 2

    model = nn.Linear(4, 2).double()
    y = torch.ones(23, 2, dtype=torch.float64)
    found = wb.evaluate(model, {"x": x, "y": y}, loss=loss, batch_size=7)
    assert found == {"loss": pytest.approx(F.mse_loss(model(x), y).item(), rel=1e-12), "samples": 23.0}


def test_the_count_is_compared_with_the_data():
    x, y = batch()

    class Short(BatchLoader):
        def windows(self, *arguments):
            return (window for number, window in enumerate(super().windows(*arguments)) if number)

    with pytest.raises(wb.DataError, match="saw 18 samples, but the data set has 23"):
        wb.evaluate(nn.Linear(4, 5).double(), Short((x, y), 5))
    with pytest.raises(wb.DataError, match=r"saw 20 samples, but the data set has 23.*drop_last"):
        wb.evaluate(nn.Linear(4, 5).double(), BatchLoader((x, y), 5, drop_last=True))


def test_a_loader_is_read_from_its_beginning_and_put_back():
    loader = BatchLoader(batch(), 5, seed=3)
    next(iter(loader))
    place = loader.state_dict()
    assert place["consumed"] == 5
    assert wb.evaluate(nn.Linear(4, 5).double(), loader)["samples"] == 23
    assert loader.state_dict() == place


def test_there_must_be_something_to_measure():
    with pytest.raises(wb.InputError, match=r"nothing to measure.*metrics="):
        wb.evaluate(nn.Linear(4, 1).double(), (batch()[0], torch.zeros(23, 1)))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ((torch.zeros(0, 4), torch.zeros(0)), "empty"),
        (TensorDataset(torch.zeros(0, 4), torch.zeros(0)), "empty"),
        ((torch.zeros(5, 4), torch.zeros(4)), r"inputs 5 \(5, 4\), targets 4 \(4,\)"),
        (DataLoader(TensorDataset(torch.zeros(3, 4)[:0]), batch_size=2), "empty"),
    ],
)
def test_data_that_cannot_be_used(data, named):
    with pytest.raises(wb.DataError, match=named):
        wb.evaluate(nn.Linear(4, 5), data)


def test_a_model_is_a_module():
    with pytest.raises(wb.InputTypeError, match="model is a function"):
        wb.evaluate(lambda x: x, batch())
