"""The training loop against the same by hand, in float64: weights, records, and what observers see."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import wholebatch as wb
from wholebatch.core.digest import digest
from wholebatch.core.record import Observer
from wholebatch.data import ArrayDataset, BatchLoader
from wholebatch.data.order import epoch_order

SAMPLES, CLASSES, BATCH = 50, 4, 16


def data(ignored=False):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    if ignored:
        y[torch.rand(SAMPLES, generator=generator) < 0.4] = -100
    return x, y


def model(dropout=0.0):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, CLASSES)).double()


def train(model, data, **options):
    options = {
        "loss": nn.CrossEntropyLoss(),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9),
        "batch_size": BATCH,
        "epochs": 3,
        "display": False,
        **options,
    }
    return wb.train(model, data, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Made(NamedTuple):
    """What a step of the oracle was."""

    loss_sum: float
    weight: int
    hits: int
    norm: float
    rate: float
    samples: int


def by_hand(model, x, y, epochs=3, seed=0, rates=lambda t: 0.3):
    """The oracle: whole batches in the documented order; a batch of ignored targets alone changes nothing."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    steps, applied = [], 0
    for epoch in range(epochs):
        for part in epoch_order(len(x), seed, epoch).split(BATCH):
            optimizer.param_groups[0]["lr"] = rate = rates(applied)
            output = model(x[part])
            weight = (y[part] != -100).sum().item()
            loss_sum = F.cross_entropy(output, y[part], reduction="sum")
            optimizer.zero_grad()
            (loss_sum / max(weight, 1)).backward()
            norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
            hits = (output.argmax(1) == y[part]).sum().item()
            steps.append(Made(loss_sum.item(), weight, hits, norm, rate, len(part)))
            if weight:
                optimizer.step()
                applied += 1
    return steps


def mean(steps):
    return sum(s.loss_sum for s in steps) / sum(s.weight for s in steps)


def assert_same(one, other, bar=1e-10):
    assert float((one - other).norm() / other.norm()) < bar


# weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 7, 64, "auto"])
def test_training_is_that_of_whole_batches(micro_batch, ignored):
    x, y = data(ignored)
    ours, oracle = model(), model()
    by_hand(oracle, x, y)
    train(ours, (x, y), micro_batch=micro_batch)
    assert_same(weights(ours), weights(oracle))


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 64])
def test_dropout_does_not_depend_on_the_micro_batch(micro_batch):
    whole, other, none = model(0.5), model(0.5), model()
    train(whole, data())
    train(other, data(), micro_batch=micro_batch)
    train(none, data())
    assert_same(weights(other), weights(whole))
    assert float((weights(none) - weights(whole)).norm()) > 0.1  # it does drop


def test_the_seed_decides_order_and_masks():
    first, again, other = model(0.5), model(0.5), model(0.5)
    train(first, data(), seed=4)
    torch.manual_seed(99)
    train(again, data(), seed=4)
    train(other, data(), seed=5)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_batch_too_large_to_be_gathered_at_once_is_streamed(monkeypatch):
    module = importlib.import_module("wholebatch.loop.train")
    at_once, streamed = model(0.5), model(0.5)
    train(at_once, data(), micro_batch=5)
    monkeypatch.setattr(module, "AT_ONCE_BYTES", 0)
    take, sizes = ArrayDataset.take, []
    monkeypatch.setattr(
        ArrayDataset, "take", lambda self, indices: (sizes.append(len(indices)), take(self, indices))[1]
    )
    monkeypatch.setattr("wholebatch.data.loader.AT_ONCE_BYTES", 0)
    train(streamed, data(), micro_batch=5, epochs=3)
    assert_same(weights(streamed), weights(at_once))
    assert max(sizes) == 5  # never the whole batch


class Singly(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


class Stream(IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


@pytest.mark.parametrize("kind", ["numpy", "list", "tensors", "dataset", "loader", "named"])
def test_random_access_gives_one_training_however_the_data_come(kind):
    x, y = data()
    given = {
        "numpy": (x.numpy(), y.numpy()),
        "list": [x, y],
        "tensors": TensorDataset(x, y),
        "dataset": Singly(x, y),
        "loader": BatchLoader((x, y), BATCH),
        "named": ({"x": x}, y),
    }[kind]
    ours, oracle = model(), model()
    if kind == "named":
        inner = ours
        ours = nn.Module()
        ours.inner = inner
        ours.forward = lambda inputs: inner(inputs["x"])
    train(oracle, (x, y))
    train(ours, given, micro_batch=5, batch_size=None if kind == "loader" else BATCH)
    assert_same(weights(ours), weights(oracle))


@pytest.mark.parametrize("kind", ["iterable", "dataloader"])
def test_streams_are_read_in_their_own_order(kind):
    x, y = data()
    given = {"iterable": Stream(x, y), "dataloader": DataLoader(TensorDataset(x, y), batch_size=BATCH)}[kind]
    ours, oracle = model(), model()
    train(oracle, BatchLoader((x, y), BATCH, shuffle=False), batch_size=None)
    history = train(ours, given, micro_batch=5, batch_size=BATCH if kind == "iterable" else None)
    assert_same(weights(ours), weights(oracle))
    assert history.last("train")["samples"] == 3 * SAMPLES


@pytest.mark.parametrize("kind", ["instance", "class", "callable"])
def test_the_optimizer_may_be_made_or_given(kind):
    ours, oracle = model(), model()
    given = {
        "instance": torch.optim.SGD(ours.parameters(), lr=0.001),
        "class": torch.optim.SGD,
        "callable": lambda parameters: torch.optim.SGD(parameters, lr=0.001),
    }[kind]
    train(ours, data(), optimizer=given)
    train(oracle, data(), optimizer=torch.optim.SGD(oracle.parameters(), lr=0.001))
    assert torch.equal(weights(ours), weights(oracle))


def test_accumulation_steps_stand_for_a_micro_batch():
    seen = []
    ours = model()
    ours.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    train(ours, data(), accumulation_steps=3, epochs=1)
    assert seen[:3] == [6, 6, 4]
    with pytest.raises(wb.ConfigError, match="give one of them"):
        train(model(), data(), accumulation_steps=3, micro_batch=2)


# records ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [5, "auto"])
def test_records_hold_weighted_means(micro_batch):
    x, y = data(ignored=True)
    test = (x[:11], y[:11])
    ours, oracle = model(), model()
    schedule = wb.LinearScheduler(20, base_lr=0.3)
    steps = by_hand(oracle, x, y, rates=schedule)
    history = train(
        ours,
        (x, y),
        micro_batch=micro_batch,
        log_every=3,
        schedule=schedule,
        eval_data=test,
        metrics=wb.Accuracy(4, -100),
    )
    assert len({s.weight for s in steps}) > 3  # the batches weigh differently, and one of them nothing
    assert 0 in {s.weight for s in steps}
    for number, record in enumerate(history.select("train", "step"), start=1):
        three = steps[3 * number - 3 : 3 * number]
        assert record == {
            "step": 3 * number,
            "epoch": (3 * number - 1) // 4 + 1,
            "samples": sum(s.samples for s in steps[: 3 * number]),
            "kind": "step",
            "split": "train",
            "loss": pytest.approx(mean(three), rel=1e-12),
            "lr": three[-1].rate,
            "grad_norm": pytest.approx(three[-1].norm, rel=1e-10),
        }
    assert number == 4
    for epoch, record in enumerate(history.select("train", "epoch"), start=1):
        four = steps[4 * epoch - 4 : 4 * epoch]
        assert record.pop("seconds") > 0
        assert record == {
            "step": 4 * epoch,
            "epoch": epoch,
            "samples": SAMPLES * epoch,
            "kind": "epoch",
            "split": "train",
            "loss": pytest.approx(mean(four), rel=1e-12),
            "accuracy": pytest.approx(sum(s.hits for s in four) / sum(s.weight for s in four)),
            "lr": four[-1].rate,
        }
    expected = wb.evaluate(ours, test, loss=nn.CrossEntropyLoss(), metrics=wb.Accuracy(4, -100))
    last = history.last("test")
    assert (last["loss"], last["accuracy"]) == (pytest.approx(expected["loss"]), expected["accuracy"])
    assert set(last) == {"step", "epoch", "samples", "kind", "split", "loss", "accuracy"}
    assert [(r["epoch"], r["samples"]) for r in history.select("test")] == [(1, 50), (2, 100), (3, 150)]


def test_a_digest_every_n_steps_and_at_the_last():
    def digests(seed=0, **options):
        ours = model()
        torch.manual_seed(seed)
        history = train(ours, data(), digest_every=5, **options)
        return history, ours

    history, ours = digests(micro_batch=3)
    assert [(r["step"], "digest" in r) for r in history.select("train", "step")] == [(5, True), (10, True), (12, True)]
    assert history.last("train", "step")["digest"] == digest(ours.state_dict())
    assert len({r["digest"] for r in history.select("train", "step")}) == 3
    again, _ = digests(micro_batch=3)
    assert [r.get("digest") for r in again] == [r.get("digest") for r in history]
    both, _ = digests(micro_batch=3, log_every=4)
    said = [(r["step"], "digest" in r) for r in both.select("train", "step")]
    assert said == [(4, False), (5, True), (8, False), (10, True), (12, True)]
    assert "digest" not in both.last("train", "epoch")


def test_the_rate_recorded_is_the_one_used_also_where_it_is_a_tensor():
    def make(parameters):
        return torch.optim.SGD(parameters, lr=torch.tensor(0.3))

    history = train(model(), data(), optimizer=make, schedule=wb.LinearScheduler(12, base_lr=0.4), log_every=1)
    expected = [wb.LinearScheduler(12, base_lr=0.4)(t) for t in range(12)]
    assert [r["lr"] for r in history.select("train", "step")] == pytest.approx(expected, rel=1e-6)


def test_a_schedule_may_count_epochs():
    history = train(model(), data(), schedule=wb.LinearScheduler(3, base_lr=0.3), schedule_unit="epoch", log_every=1)
    rates = [r["lr"] for r in history.select("train", "step")]
    assert rates == pytest.approx([0.3] * 4 + [0.2] * 4 + [0.1] * 4)


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_an_lr_scheduler_is_stepped_by_us(unit):
    ours = model()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.8)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    history = train(ours, data(), optimizer=optimizer, schedule=schedule, schedule_unit=unit, micro_batch=3)
    assert [r["lr"] for r in history.select("train", "epoch")] == pytest.approx(
        [0.8 * 0.5**t for t in ((3, 7, 11) if unit == "step" else (0, 1, 2))]
    )


def test_a_loss_function_of_model_and_batch_records_its_loss_alone():
    x, y = data()
    history = train(model(), (x, y), loss=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"), micro_batch=5)
    other = train(model(), (x, y))
    assert [r["loss"] for r in history] == pytest.approx([r["loss"] for r in other], rel=1e-12)
    assert "accuracy" not in history.last("train")


def test_an_epoch_without_weight_has_no_loss_and_changes_nothing():
    x, y = data()
    ours = model()
    before = weights(ours).clone()
    history = train(ours, (x, torch.full_like(y, -100)), epochs=1, metrics=wb.Accuracy(4, -100))
    assert torch.equal(weights(ours), before)
    assert history.last("train")["loss"] != history.last("train")["loss"]


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = str(function)
        self.count += "local_scalar" in name or "nonzero" in name or "is_nonzero" in name
        return function(*arguments, **(options or {}))


def test_host_reads_do_not_grow_with_micro_batches_and_stay_few_per_step():
    x, y = data()

    def reads(micro_batch, epochs, **options):
        with Reads() as mode:
            train(model(), (x, y), micro_batch=micro_batch, epochs=epochs, **options)
        return mode.count

    assert reads(2, 1) == reads(8, 1)
    assert reads(2, 1, batch_size=5) - reads(2, 1) <= 2 * 6  # six steps more, and no more records


# modes, observers, errors -----------------------------------------------------------------------------------


def test_modes_are_given_back_and_a_frozen_layer_stays_frozen():
    ours = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)).double()
    ours[1].eval()
    mean = ours[1].running_mean.clone()
    train(ours, data(), eval_data=data(), micro_batch=5)
    assert [m.training for m in ours.modules()] == [True, True, False, True]
    assert torch.equal(ours[1].running_mean, mean)
    ours.eval()
    seen = []
    ours[0].register_forward_hook(lambda layer, *_: seen.append(layer.training))
    train(ours, data(), epochs=1)
    assert all(seen)
    assert [m.training for m in ours.modules()] == [False] * 4


class Notes(Observer):
    def __init__(self, fail_at=None, error=None, also_at_end=False):
        self.calls, self.fail_at, self.error, self.also_at_end = [], fail_at, error, also_at_end

    def _note(self, name, value=None):
        self.calls.append((name, value))
        if name == self.fail_at:
            raise self.error

    def start(self, run):
        self._note("start", run)

    def step(self, progress):
        self._note("step", progress)

    def record(self, record):
        self._note("record", record)

    def end(self, history, error):
        self._note("end", error)


def test_observers_see_steps_and_records():
    notes = Notes()
    history = train(model(), data(), observers=[notes], epochs=2, eval_data=data())
    run = notes.calls[0][1]
    assert (run.epochs, run.steps_per_epoch, run.samples_per_epoch, run.batch_size, run.evaluates) == (
        2,
        4,
        50,
        16,
        True,
    )
    steps = [value for name, value in notes.calls if name == "step"]
    assert [(p.epoch, p.step, p.step_in_epoch, p.samples) for p in steps][3:6] == [
        (1, 4, 4, 50),
        (2, 5, 1, 66),
        (2, 6, 2, 82),
    ]
    assert set(steps[-1].read()) == {"loss", "accuracy", "lr"}
    assert [value for name, value in notes.calls if name == "record"] == history.records
    assert notes.calls[-1] == ("end", None)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), ValueError("mine")])
@pytest.mark.parametrize("when", ["start", "step", "record"])
def test_all_observers_are_told_of_the_end_once(when, error):
    first, failing, last = Notes(), Notes(when, error), Notes()
    ours = model().eval()
    with pytest.raises(type(error)) as caught:
        train(ours, data(), observers=[first, failing, last])
    assert caught.value is error
    for notes in (first, failing, last):
        assert [value for name, value in notes.calls if name == "end"] == [error]
    assert not any(m.training for m in ours.modules())


def test_an_observer_that_fails_at_the_end_does_not_keep_it_from_others():
    first, failing, last = Notes(), Notes("end", OSError("full")), Notes()
    with pytest.raises(OSError, match="full"):
        train(model(), data(), observers=[first, failing, last], epochs=1)
    assert [name for name, _ in first.calls].count("end") == [name for name, _ in last.calls].count("end") == 1


def test_the_order_of_training_does_not_change_when_its_loader_is_evaluated():
    alone, watched = model(), model()
    train(alone, BatchLoader(data(), BATCH), batch_size=None)
    loader = BatchLoader(data(), BATCH)
    train(watched, loader, batch_size=None, eval_data=loader)
    assert_same(weights(watched), weights(alone))


def test_evaluation_takes_no_more_at_once_than_training():
    sizes = []
    ours = model()
    ours.register_forward_pre_hook(lambda m, inputs: None if m.training else sizes.append(len(inputs[0])))
    train(ours, data(), micro_batch=7, epochs=1, eval_data=data())
    assert max(sizes) == 7
    assert sum(sizes) == SAMPLES


def test_a_gradient_that_is_not_finite_names_the_step():
    x, y = data()
    x[3] = float("nan")
    with pytest.raises(wb.NonFiniteError, match="step"):
        train(model(), (x, y))


def test_a_step_that_was_skipped_does_not_spoil_the_epochs_loss():
    from wholebatch import loop
    from wholebatch.core.record import RunShape

    x, y = data()
    x[3] = float("nan")
    ours = model()
    step = wb.Step(ours, torch.optim.SGD(ours.parameters(), lr=0.1), nn.CrossEntropyLoss(), nonfinite="skip")
    history = loop.train(
        step,
        BatchLoader((x, y), BATCH),
        RunShape(1, 4, SAMPLES, BATCH, "cpu"),
        micro_batch=None,
        device=torch.device("cpu"),
        metrics=loop.Metrics(),
    )
    assert step.skipped == 1
    assert 0 < history.last("train")["loss"] < 3
