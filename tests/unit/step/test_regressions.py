"""Cases that were once wrong: each names what was silently different, or what was refused for no reason."""

from __future__ import annotations

import collections
import copy
import io
import pickle
import types
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb

N = 12
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(4)).double() * torch.arange(1, N + 1)[:, None]
Y = torch.tensor([0, 4, 2, 2, 1, 3, 3, 0, 1, 4, 2, 1])
WEIGHTS = torch.tensor([0.1, 3.0, 0.7, 2.0, 1.3], dtype=torch.float64)


def mlp() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5)).double()


def sgd(model: nn.Module, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=0.1)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def same(ours: Tensor, exact: Tensor, bar: float = 1e-12) -> bool:
    return float((ours - exact).norm()) <= bar * float(exact.norm())


def stepped(model: nn.Module, batch: Any, loss: Any, micro: int, steps: int = 1, **options: Any) -> Tensor:
    model = copy.deepcopy(model)
    step = wb.Step(model, sgd(model, options.pop("rate", 0.0)), loss, micro_batch=micro, **options)
    for _ in range(steps):
        step(batch)
    return gradient(model)


def exact(model: nn.Module, mean: Any) -> Tensor:
    model = copy.deepcopy(model)
    mean(model).backward()
    return gradient(model)


# losses -----------------------------------------------------------------------------------------------


def test_targets_of_bytes_are_classes_and_no_mask() -> None:
    bytes_ = Y.to(torch.uint8)
    whole = exact(mlp(), lambda m: F.cross_entropy(m(X), Y, weight=WEIGHTS))
    assert same(stepped(mlp(), (X, bytes_), nn.CrossEntropyLoss(weight=WEIGHTS), 5), whole)


@pytest.mark.parametrize("form", ["lists", "tuples", "int32", "concatenated"])
@pytest.mark.parametrize("micro", [1, 5, 12])
def test_ctc_takes_lengths_and_targets_as_torch_does(form: str, micro: int) -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    x, targets = torch.randn(N, 7, 6).double(), torch.randint(1, 4, (N, 3))
    lengths, target_lengths = torch.randint(6, 8, (N,)), torch.randint(0, 4, (N,))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = model

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).log_softmax(-1).transpose(0, 1)

    loss = nn.CTCLoss()
    whole = exact(Model(), lambda m: loss(m(x), targets, lengths, target_lengths))
    rest: Any = {
        "lists": (targets, lengths.tolist(), target_lengths.tolist()),
        "tuples": (targets, tuple(lengths.tolist()), tuple(target_lengths.tolist())),
        "int32": (targets, lengths.int(), target_lengths.int()),
        "concatenated": (
            torch.cat([row[: int(n)] for row, n in zip(targets, target_lengths, strict=True)]),
            lengths,
            target_lengths,
        ),
    }[form]
    assert same(stepped(Model(), (x, *rest), loss, micro), whole)
    window = wb.MicroBatches([(x, *rest)])
    assert same(stepped(Model(), window, loss, micro), whole)


@pytest.mark.parametrize(("option", "value"), [("label_smoothing", 0.4), ("ignore_index", 2)])
def test_options_changed_after_the_step_was_made(option: str, value: Any) -> None:
    model, loss = mlp(), nn.CrossEntropyLoss()
    step = wb.Step(model, sgd(model, 0.0), loss, micro_batch=5)
    setattr(loss, option, value)
    step((X, Y))
    assert same(gradient(model), exact(mlp(), lambda m: loss(m(X), Y)))


def test_numpy_numbers_are_numbers() -> None:
    model = mlp()
    accumulator = wb.GradientAccumulator(model)
    for part in (slice(0, 5), slice(5, N)):
        accumulator.add(F.cross_entropy(model(X[part]), Y[part]), np.int64(len(Y[part])))
    assert accumulator.apply(sgd(model, 0.0), clip_norm=np.float32(1e9)).weight == N  # type: ignore[arg-type]
    assert same(gradient(model), exact(mlp(), lambda m: F.cross_entropy(m(X), Y)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_frozen_model_is_said_whatever_the_reduction(reduction: str) -> None:
    model = mlp().requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(wb.LossError, match="no parameter"):
        wb.Step(model, sgd(model), nn.CrossEntropyLoss(reduction=reduction))((X, Y))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# batches ------------------------------------------------------------------------------------------------


class ReadOnly(collections.abc.Mapping):  # type: ignore[type-arg]
    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        return self._entries[name]

    def __iter__(self) -> Any:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@pytest.mark.parametrize("kind", [types.MappingProxyType, ReadOnly])
def test_read_only_mappings(kind: Any) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert isinstance(batch, kind)
        return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    assert same(stepped(mlp(), kind({"x": X, "y": Y}), loss, 5), exact(mlp(), lambda m: F.cross_entropy(m(X), Y)))


def test_fields_of_named_tuples_have_axes_by_name_and_by_place() -> None:
    Batch = collections.namedtuple("Batch", "x y scale")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch.x.t()), batch.y, weight=batch.scale, reduction="none")

    whole = exact(mlp(), lambda m: F.cross_entropy(m(X), Y, weight=WEIGHTS, reduction="none").mean())
    for axes in ({"x": 1, "scale": None}, {0: -1, 2: None}):
        assert same(stepped(mlp(), Batch(X.t(), Y, WEIGHTS), loss, 5, batch_axis=axes), whole)


def test_a_window_that_is_a_list_or_a_loader_is_used_again() -> None:
    window = wb.MicroBatches([(X[:5], Y[:5]), (X[5:], Y[5:])])
    model = mlp()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss())
    assert [step(window).samples for _ in range(2)] == [N, N]
    used_up = wb.MicroBatches(iter([(X, Y)]), samples=N)
    step(used_up)
    with pytest.raises(wb.BatchError, match="gave 0"):
        step(used_up)


def test_pieces_that_are_cut_know_their_place() -> None:
    rows = torch.arange(1.0, N + 1).double()[:, None]
    targets = torch.eye(5).double()[Y]
    model = nn.Sequential(mlp(), nn.Dropout(0.4))
    whole = stepped(model, (X, targets), nn.BCEWithLogitsLoss(weight=rows), N)
    window = wb.MicroBatches([(X[:5], targets[:5]), (X[5:5], targets[5:5]), (X[5:], targets[5:])], samples=N)
    assert same(stepped(model, window, nn.BCEWithLogitsLoss(weight=rows), 3), whole)
    with pytest.raises(wb.BatchError, match=r"samples=-1"):
        wb.MicroBatches([], samples=-1)


def test_what_makes_the_pieces_has_torch_as_the_caller_left_it() -> None:
    plain, orders = F.dropout, []

    def pieces() -> Any:
        for start in (0, 5):
            assert F.dropout is plain
            yield F.dropout(X[start : start + 5], 0.5), Y[start : start + 5]

    def recorded(loader: Any) -> Any:
        for x, y in loader:
            orders.append(y)
            yield x, y

    model = mlp()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss())
    step(wb.MicroBatches(pieces()))
    assert F.dropout is plain
    data = torch.utils.data.TensorDataset(X, torch.arange(N) % 5)
    for _ in range(2):
        step(wb.MicroBatches(torch.utils.data.DataLoader(data, batch_size=N, shuffle=True)))
        step(wb.MicroBatches(recorded(torch.utils.data.DataLoader(data, batch_size=N, shuffle=True))))
    assert not torch.equal(*orders)


def test_a_loader_draws_its_seed_from_the_callers_generator() -> None:
    data = torch.utils.data.TensorDataset(X, Y)
    model = mlp()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss())
    before = torch.get_rng_state()
    step(wb.MicroBatches(torch.utils.data.DataLoader(data, batch_size=4, shuffle=True)))
    assert not torch.equal(before, torch.get_rng_state())


# who owns what -------------------------------------------------------------------------------------------


def test_a_group_added_later_is_divided_once() -> None:
    model, reference = mlp(), mlp()
    ours, theirs = torch.optim.SGD(model[2].parameters(), lr=0.1), torch.optim.SGD(reference[2].parameters(), lr=0.1)
    step = wb.Step(model, ours, nn.CrossEntropyLoss(), micro_batch=5)
    step((X, Y))
    F.cross_entropy(reference(X), Y).backward()
    theirs.step()
    reference.zero_grad()
    for optimizer, net in ((ours, model), (theirs, reference)):
        optimizer.add_param_group({"params": net[0].parameters()})
    report = step((X, Y))
    F.cross_entropy(reference(X), Y).backward()
    assert same(gradient(model), gradient(reference))
    assert report.grad_norm == pytest.approx(float(gradient(reference).norm()), rel=1e-12)
    ours.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    with pytest.raises(wb.InputError, match="group 2"):
        step((X, Y))


def test_a_layer_frozen_between_windows_keeps_no_old_gradient() -> None:
    model = mlp()
    accumulator, optimizer = wb.GradientAccumulator(model), sgd(model)
    accumulator.add(F.cross_entropy(model(X), Y, reduction="none"))
    accumulator.apply(optimizer)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    accumulator.add(F.cross_entropy(model(X), Y, reduction="none"))
    accumulator.apply(optimizer)
    assert torch.equal(before, model[0].weight)


def test_an_accumulator_refuses_parameters_it_does_not_divide() -> None:
    model, extra = mlp(), nn.Parameter(torch.ones(()).double())
    accumulator = wb.GradientAccumulator(model)
    accumulator.add(extra * F.cross_entropy(model(X), Y, reduction="none"))
    with pytest.raises(wb.InputError, match="ModuleList"):
        accumulator.apply(torch.optim.SGD([*model.parameters(), extra], lr=0.1))


def test_losses_that_are_refused_do_not_count() -> None:
    model = mlp()
    accumulator = wb.GradientAccumulator(model)
    accumulator.add(F.cross_entropy(model(X[:5]), Y[:5], reduction="none"))
    with pytest.raises(wb.LossError):
        accumulator.add(torch.ones(3))
    accumulator.add(F.cross_entropy(model(X[5:]), Y[5:], reduction="none"))
    report = accumulator.apply(sgd(model))
    assert (report.weight, report.samples, report.micro_batches) == (N, N, 2)


def test_a_report_lets_its_gradient_go_at_the_next_step() -> None:
    model = mlp()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss())
    report = step((X, Y))
    kept = weakref.ref(model[0].weight.grad)
    step((X, Y))
    assert kept() is None
    assert report.grad_norm > 0


def test_a_norm_read_late_is_that_of_its_own_step() -> None:
    model = mlp()
    optimizer = sgd(model)
    one, other = wb.Step(model, optimizer, nn.CrossEntropyLoss()), wb.Step(model, optimizer, nn.MSELoss())
    report = one((X, Y))
    norm = float(gradient(model).norm())
    other((X, X[:, :5]))
    optimizer.zero_grad()
    assert report.grad_norm == pytest.approx(norm, rel=1e-12)


def test_schedules_that_cannot_be_stepped_are_refused() -> None:
    model = mlp()
    optimizer, other = sgd(model), sgd(model)
    with pytest.raises(wb.InputTypeError, match="ReduceLROnPlateau"):
        wb.Step(model, optimizer, nn.MSELoss(), schedule=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
    with pytest.raises(wb.InputError, match="another optimizer"):
        wb.Step(model, optimizer, nn.MSELoss(), schedule=torch.optim.lr_scheduler.StepLR(other, 1))


def test_copies_and_pickles_go_on_alike_and_apart() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 5)).double()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(weight=WEIGHTS), micro_batch=5)
    step((X, Y))
    copied, pickled = copy.deepcopy(step), pickle.loads(pickle.dumps(step))
    for each in (copied, pickled, step):
        each((X, Y))
        assert each is step or each.model is not model
        assert torch.equal(each.model[0].weight, copied.model[0].weight)
    buffer = io.BytesIO()
    torch.save(step.state_dict(), buffer)
    buffer.seek(0)
    pickled.load_state_dict(torch.load(buffer, weights_only=True))
    assert pickled.calls == 2


# layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parametrization", "hook"])
@pytest.mark.parametrize("micro", [1, 5])
def test_spectral_norm_iterates_once_per_step(kind: str, micro: int) -> None:
    def make() -> nn.Module:
        model = mlp()
        (nn.utils.parametrizations.spectral_norm if kind == "parametrization" else nn.utils.spectral_norm)(model[0])
        return model

    model = make()
    reference = copy.deepcopy(model)
    ours, theirs = sgd(model), sgd(reference)
    step = wb.Step(model, ours, nn.CrossEntropyLoss(), micro_batch=micro)
    for _ in range(3):
        step((X, Y))
        theirs.zero_grad()
        F.cross_entropy(reference(X), Y).backward()
        theirs.step()
        assert same(gradient(model), gradient(reference))
    for a, b in zip(model.buffers(), reference.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


def test_layers_that_see_the_micro_batch_are_named() -> None:
    counted = nn.Sequential(nn.Embedding(5, 6, scale_grad_by_freq=True), nn.Flatten(), nn.Linear(6, 5))
    untracked = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 5)).eval()
    for model, x, name in ((counted, Y[:, None], "scale_grad_by_freq"), (untracked, X.float(), "batch norm")):
        step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(), micro_batch=5)
        with pytest.warns(wb.PromiseWarning, match=name):
            step((x, Y))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step((x, Y))  # said once
            whole = copy.deepcopy(model)
            wb.Step(whole, sgd(whole), nn.CrossEntropyLoss())((x, Y))


def test_double_as_default_dtype() -> None:
    model = mlp()
    torch.set_default_dtype(torch.float64)
    try:
        ours = stepped(model, (X, Y), nn.CrossEntropyLoss(), 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same(ours, exact(mlp(), lambda m: F.cross_entropy(m(X), Y)))


# draws -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Three layers and two dropouts, put together by a function."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.d, self.e, self.how = nn.Dropout(0.4), nn.Dropout(0.2), forward
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


TOKENS = torch.randn(N, 4, 6, generator=torch.Generator().manual_seed(5)).double()


@pytest.mark.parametrize(
    ("how", "x"),
    [
        (lambda s, x: s.c(s.d(s.a(torch.cat([x, x * 2]))).view(2, len(x), 8).prod(0)), X / N),
        (lambda s, x: s.c(s.d(s.a(x.transpose(0, 1).reshape(-1, 6))).view(4, -1, 8).mean(0)), TOKENS),
        (
            lambda s, x: s.c(s.e(s.d(s.a(torch.cat([x, x * 2, -x]).reshape(-1, 6)))).view(3, -1, 4, 8).mean((0, 2))),
            TOKENS,
        ),
    ],
    ids=["two views", "sequence first, flattened", "three views of tokens"],
)
def test_an_axis_that_runs_through_the_samples_several_times(how: Any, x: Tensor) -> None:
    whole = stepped(Net(how), (x, Y), nn.CrossEntropyLoss(), N)
    for micro in (1, 2, 5, 7):
        assert same(stepped(Net(how), (x, Y), nn.CrossEntropyLoss(), micro), whole)
    assert not same(stepped(Net(how), (x, Y), nn.CrossEntropyLoss(), N, seed=1), whole, 1e-3)


def test_calls_that_change_their_meaning_between_steps() -> None:
    ways = [
        lambda s, x: F.linear(x, F.dropout(s.a.weight * 2, 0.5)) @ s.b.weight @ s.c.weight.t(),
        lambda s, x: s.c(s.d(s.a(x))),
        lambda s, x: s.c(s.d(s.a(x).t().contiguous()).t()),
        lambda s, x: s.c(s.d(s.a(x).unsqueeze(0).expand(24, -1, -1)).mean(0)),
    ]
    results = []
    for micro in (N, 1, 3, 5):
        model = Net(None)
        step = wb.Step(model, sgd(model, 1e-3), nn.CrossEntropyLoss(), micro_batch=micro)
        for number in (0, 1, 2, 3, 0, 3, 1):
            model.how = ways[number]
            step((X, Y))
        results.append(gradient(model))
    assert all(same(result, results[0]) for result in results)


def test_a_query_that_sees_nothing_gives_no_nan() -> None:
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True)
    padding = torch.zeros(N, 4, dtype=torch.bool)
    padding[3] = True  # a sample without any token
    padding[5, 2:] = True

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0], src_key_padding_mask=batch[1]).pow(2).mean((1, 2))

    model = layer.double()
    whole = stepped(model, (TOKENS, padding), loss, N)
    assert whole.isfinite().all()
    assert same(stepped(model, (TOKENS, padding), loss, 5), whole)


@pytest.mark.parametrize("callers", [False, True])
def test_autocast_is_left_as_found_and_no_gradient_is_lost(callers: bool) -> None:
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3)  # sequences first: a probe has to decide

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.last = layer, nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(x.transpose(0, 1)).mean(0))

    model = Model()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(), micro_batch=4, precision="fp32" if callers else "bf16")
    with torch.autocast("cpu", torch.bfloat16, enabled=callers):
        step((TOKENS.float(), Y))
        assert torch.is_autocast_enabled("cpu") == callers
    assert not torch.is_autocast_enabled("cpu")
    assert all(p.grad is not None for p in model.parameters())


def test_unkeyed_draws_beside_keyed_ones_after_quiet_steps() -> None:
    model = Net(lambda s, x: s.c(s.a(x)))
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(), micro_batch=5)
    step((X, Y))
    model.how = lambda s, x: s.c(s.d(s.a(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step((X, Y))  # keyed ones alone are none
        model.how = lambda s, x: s.c(s.a(x))
        step((X, Y))
    model.how = lambda s, x: s.c(s.d(s.a(x)) + torch.randn_like(s.a(x)))
    with pytest.warns(wb.PromiseWarning, match="not keyed"):
        step((X, Y))
