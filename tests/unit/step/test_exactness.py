"""The update of ``Step`` and ``GradientAccumulator`` is that of the whole batch at once."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import OrderedDict, UserDict, namedtuple
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import wholebatch as wb

BAR = 1e-12
MICRO = (1, 2, 3, 4, 5, 7, 9, 11, 100)  # the batch has 11 samples
N = 11


def updates(model: nn.Module, before: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([(p.detach() - before[name]).flatten() for name, p in model.named_parameters()])


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    assert exact.norm() > 0
    return float(((ours - exact).norm() / exact.norm()).detach())


def whole(model: nn.Module, mean_of_batch: Any, make: Any = None) -> torch.Tensor:
    """The oracle: one backward of the mean over everything."""
    model = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = (make or (lambda ps: torch.optim.SGD(ps, lr=0.1)))(model.parameters())
    mean_of_batch(model).backward()
    optimizer.step()
    return updates(model, before)


def stepped(model: nn.Module, batch: Any, loss: Any, make: Any = None, **options: Any) -> torch.Tensor:
    model = copy.deepcopy(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = (make or (lambda ps: torch.optim.SGD(ps, lr=0.1)))(model.parameters())
    wb.Step(model, optimizer, loss, **options)(batch)
    return updates(model, before)


def mlp(out: int = 5) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, out)).double()


def scaled(*shape: int) -> torch.Tensor:
    """Distinct samples of very different size, so that unequal weighting shows."""
    torch.manual_seed(7)
    x = torch.randn(*shape, dtype=torch.float64)
    return x * torch.arange(1, shape[0] + 1, dtype=torch.float64).view(-1, *(1,) * (len(shape) - 1))


X = scaled(N, 6)
CLASSES = torch.tensor([0, 4, 2, 2, 1, 3, 3, 0, 1, 4, 2])
IGNORED = torch.tensor([0, -100, -100, -100, 1, 3, -100, -100, -100, -100, -100])
WEIGHTS = torch.tensor([0.1, 3.0, 0.7, 2.0, 1.3], dtype=torch.float64)
REAL = scaled(N, 5).flip(0)
PROBABILITIES = torch.softmax(scaled(N, 5).sin(), 1)
BINARY = (REAL > 0).double()
SIGNS = BINARY * 2 - 1


class Spread(nn.Module):
    """Gives several outputs, for losses that take several."""

    def __init__(self, parts: int, width: int = 5, last: Any = None) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.parts = nn.ModuleList([nn.Linear(6, width) for _ in range(parts)]).double()
        self.last = last

    def forward(self, x: torch.Tensor) -> Any:
        outs = [part(x) for part in self.parts]
        return tuple(outs) if self.last is None else self.last(outs)


class Sequences(nn.Module):
    """Log-probabilities of shape (time, samples, classes), as CTC takes them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.linear = nn.Linear(6, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).log_softmax(-1).transpose(0, 1)


def positive_variance(outs: list[torch.Tensor]) -> Any:
    return outs[0], REAL.new_tensor(0), F.softplus(outs[1])


LOSSES: dict[str, tuple[Any, Any, tuple[Any, ...]]] = {
    "cross entropy": (mlp, nn.CrossEntropyLoss(), (CLASSES,)),
    "cross entropy, ignored": (mlp, nn.CrossEntropyLoss(), (IGNORED,)),
    "cross entropy, ignore 2": (mlp, nn.CrossEntropyLoss(ignore_index=2), (CLASSES,)),
    "cross entropy, weights": (mlp, nn.CrossEntropyLoss(weight=WEIGHTS), (CLASSES,)),
    "cross entropy, weights ignored": (mlp, nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2), (CLASSES,)),
    "cross entropy, smoothing": (mlp, nn.CrossEntropyLoss(label_smoothing=0.2), (IGNORED,)),
    "cross entropy, all": (
        mlp,
        nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=4, label_smoothing=0.3),
        (CLASSES,),
    ),
    "cross entropy, probabilities": (mlp, nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1), (PROBABILITIES,)),
    "cross entropy, sum": (mlp, nn.CrossEntropyLoss(reduction="sum"), (CLASSES,)),
    "nll": (lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), nn.NLLLoss(weight=WEIGHTS, ignore_index=1), (CLASSES,)),
    "l1": (mlp, nn.L1Loss(), (REAL,)),
    "mse": (mlp, nn.MSELoss(), (REAL,)),
    "mse, sum": (mlp, nn.MSELoss(reduction="sum"), (REAL,)),
    "smooth l1": (mlp, nn.SmoothL1Loss(beta=2.0), (REAL,)),
    "huber": (mlp, nn.HuberLoss(delta=2.0), (REAL,)),
    "soft margin": (mlp, nn.SoftMarginLoss(), (SIGNS,)),
    "hinge embedding": (mlp, nn.HingeEmbeddingLoss(margin=2.0), (SIGNS,)),
    "bce": (lambda: nn.Sequential(mlp(), nn.Sigmoid()), nn.BCELoss(), (BINARY,)),
    "bce, weight per sample": (
        lambda: nn.Sequential(mlp(), nn.Sigmoid()),
        nn.BCELoss(weight=scaled(N, 1).abs()),
        (BINARY,),
    ),
    "bce, weight per class": (lambda: nn.Sequential(mlp(), nn.Sigmoid()), nn.BCELoss(weight=WEIGHTS), (BINARY,)),
    "bce logits": (mlp, nn.BCEWithLogitsLoss(pos_weight=WEIGHTS, weight=scaled(N, 1).abs()), (BINARY,)),
    "poisson": (mlp, nn.PoissonNLLLoss(full=True), (BINARY,)),
    "gaussian": (
        lambda: Spread(1),
        nn.GaussianNLLLoss(),
        (REAL, scaled(N, 5).abs() + 1),
    ),
    "gaussian, one variance": (lambda: Spread(1), nn.GaussianNLLLoss(full=True), (REAL, scaled(N, 1).abs() + 1)),
    "kl": (lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), nn.KLDivLoss(reduction="batchmean"), (PROBABILITIES,)),
    "kl, sum": (lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)), nn.KLDivLoss(reduction="sum"), (PROBABILITIES,)),
    "margin ranking": (lambda: Spread(2), nn.MarginRankingLoss(margin=1.0), (SIGNS,)),
    "cosine embedding": (lambda: Spread(2), nn.CosineEmbeddingLoss(margin=0.1), (SIGNS[:, 0],)),
    "multi margin": (mlp, nn.MultiMarginLoss(weight=WEIGHTS), (CLASSES,)),
    "multi-label margin": (mlp, nn.MultiLabelMarginLoss(), (torch.stack([CLASSES, *[CLASSES * 0 - 1] * 4], 1),)),
    "multi-label soft margin": (mlp, nn.MultiLabelSoftMarginLoss(weight=WEIGHTS), (BINARY,)),
    "triplet": (lambda: Spread(3), nn.TripletMarginLoss(margin=50.0), ()),
    "triplet, distance": (
        lambda: Spread(3),
        nn.TripletMarginWithDistanceLoss(distance_function=nn.PairwiseDistance(), margin=50.0),
        (),
    ),
    "functional": (mlp, F.cross_entropy, (IGNORED,)),
    "functional, partial": (mlp, functools.partial(F.cross_entropy, weight=WEIGHTS, ignore_index=2), (CLASSES,)),
    "functional, partial of partial": (
        mlp,
        functools.partial(functools.partial(F.mse_loss, reduction="sum"), reduction="mean"),
        (REAL,),
    ),
    "functional, mse weights": (mlp, functools.partial(F.mse_loss, weight=scaled(N, 5).abs()), (REAL,)),
    "functional, l1 weights": (mlp, functools.partial(F.l1_loss, weight=scaled(N, 5).abs()), (REAL,)),
    "functional, huber weights": (mlp, functools.partial(F.huber_loss, weight=scaled(N, 5).abs()), (REAL,)),
    "functional, size_average": (mlp, functools.partial(F.mse_loss, size_average=False), (REAL,)),
}


@pytest.mark.filterwarnings("ignore:size_average and reduce")
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_torch(name: str) -> None:
    make, loss, targets = LOSSES[name]
    model = make()

    def mean(m: nn.Module) -> torch.Tensor:
        output = m(X)
        return loss(*(output if isinstance(output, tuple) else (output,)), *targets)

    exact = whole(model, mean)
    for micro in MICRO:
        assert relative(stepped(model, (X, *targets), loss, micro_batch=micro), exact) < BAR, micro


def test_ctc() -> None:
    model, x = Sequences(), scaled(N, 9, 6)
    targets = torch.randint(1, 4, (N, 4), generator=torch.Generator().manual_seed(1))
    lengths, target_lengths = torch.full((N,), 9), torch.tensor([1, 2, 3, 4, 0, 1, 2, 3, 4, 1, 2])
    for loss in (nn.CTCLoss(), nn.CTCLoss(zero_infinity=True), nn.CTCLoss(reduction="sum")):
        exact = whole(model, lambda m, loss=loss: loss(m(x), targets, lengths, target_lengths))
        for micro in MICRO:
            ours = stepped(model, (x, targets, lengths, target_lengths), loss, micro_batch=micro)
            assert relative(ours, exact) < BAR


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has no LinearCrossEntropyLoss")
def test_linear_cross_entropy_and_parameters_inside_a_loss() -> None:
    loss = nn.LinearCrossEntropyLoss(5, 4, dtype=torch.float64, options=None)
    targets = CLASSES % 4
    model = nn.ModuleDict({"body": mlp(), "loss": loss})
    exact = whole(model, lambda m: m["loss"](m["body"](X), targets))
    for micro in MICRO:
        ours = copy.deepcopy(model)
        before = {name: p.detach().clone() for name, p in ours.named_parameters()}
        optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
        wb.Step(ours["body"], optimizer, ours["loss"], micro_batch=micro)((X, targets))
        assert relative(updates(ours, before), exact) < BAR


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reduction_none_is_averaged(reduction: str) -> None:
    exact = whole(
        mlp(), lambda m: getattr(F.mse_loss(m(X), REAL, reduction="none"), "sum" if reduction == "sum" else "mean")()
    )
    assert relative(stepped(mlp(), (X, REAL), nn.MSELoss(reduction=reduction), micro_batch=3), exact) < BAR


def test_losses_of_ones_own() -> None:
    mask = (torch.arange(N * 5).view(N, 5) % 3 == 0).double()
    mask[3:6] = 0

    def pair(model: nn.Module, batch: Any) -> Any:
        x, y, w = batch
        return (model(x) - y) ** 2, w

    def unreduced(model: nn.Module, batch: Any) -> Any:
        return (model(batch[0]) - batch[1]) ** 2

    def mean(model: nn.Module, batch: Any) -> Any:
        x, y, w = batch
        losses = (model(x) - y) ** 2
        return (losses * w).sum() / w.sum(), w.sum()

    class Own(nn.MSELoss):
        def forward(self, output: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> Any:  # type: ignore[override]
            return (output - y) ** 2, w

    weighted = whole(mlp(), lambda m: (mask * (m(X) - REAL) ** 2).sum() / mask.sum())
    plain = whole(mlp(), lambda m: ((m(X) - REAL) ** 2).mean())
    for micro in MICRO:
        for loss in (pair, mean, Own()):
            assert relative(stepped(mlp(), (X, REAL, mask), loss, micro_batch=micro), weighted) < BAR
        assert relative(stepped(mlp(), (X, REAL), unreduced, micro_batch=micro), plain) < BAR


def test_masked_losses_may_be_nan() -> None:
    losses = nn.Parameter(torch.tensor([1.0, float("nan"), 2.0], dtype=torch.float64))
    model = nn.ParameterList([losses])
    g = wb.GradientAccumulator(model)
    g.add(losses * 1.0, weights=torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    report = g.apply(torch.optim.SGD(model.parameters(), lr=0.0))
    assert report.loss == 1.5
    assert losses.grad.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("micro", MICRO)
def test_gradient_accumulator(micro: int) -> None:
    for loss, weights in ((lambda m, x, y: (m(x) - y) ** 2, None), (lambda m, x, y: (m(x) - y) ** 2, REAL.abs())):
        total = 1.0 if weights is None else weights
        exact = whole(
            mlp(),
            lambda m, loss=loss, total=total: (
                (loss(m, X, REAL) * total).sum() / (N * 5 if isinstance(total, float) else total.sum())
            ),
        )
        model = mlp()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        g = wb.GradientAccumulator(model)
        next(iter(model.parameters())).grad = torch.ones(8, 6, dtype=torch.float64)  # somebody else's
        for start in range(0, N, micro):
            cut = slice(start, start + micro)
            g.add(loss(model, X[cut], REAL[cut]), weights=None if weights is None else weights[cut])
        report = g.apply(torch.optim.SGD(model.parameters(), lr=0.1))
        assert relative(updates(model, before), exact) < BAR
        assert report.weight == pytest.approx(N * 5 if weights is None else float(weights.sum()), rel=1e-14)
        assert report.samples == N


def test_accumulator_windows_are_apart_and_reset_forgets() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    g = wb.GradientAccumulator(model)
    g.add((model(X) * 1e6).pow(2))
    g.reset()
    for _ in range(2):
        exact = whole(model, lambda m: F.cross_entropy(m(X), CLASSES))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        g.add(F.cross_entropy(model(X[:4]), CLASSES[:4], reduction="none"))
        g.add(F.cross_entropy(model(X[4:]), CLASSES[4:]), weights=7)
        g.apply(optimizer)
        assert relative(updates(model, before), exact) < BAR


Named = namedtuple("Named", "x y")


@dataclasses.dataclass(frozen=True)
class Data:
    x: torch.Tensor
    y: torch.Tensor
    names: list[str]
    scale: float


@pytest.mark.parametrize(
    "batch",
    [
        {"x": X, "y": REAL},
        OrderedDict(x=X, y=REAL),
        UserDict(x=X, y=REAL),
        Named(X, REAL),
        Data(X, REAL, [str(i) for i in range(N)], 1.0),
        {"x": X, "y": REAL, "extra": {"deep": [X, (REAL, "text")]}, "none": None, "scalar": torch.tensor(3.0)},
    ],
    ids=["dict", "ordered", "user dict", "named tuple", "dataclass", "nested"],
)
@pytest.mark.parametrize("micro", [1, 4, 11])
def test_nested_batches(batch: Any, micro: int) -> None:
    kind = type(batch)

    def loss(model: nn.Module, piece: Any) -> torch.Tensor:
        assert type(piece) is kind
        get = piece.__getitem__ if hasattr(piece, "keys") else lambda name: getattr(piece, name)
        if kind is Data:
            assert len(piece.names) == len(piece.x)
        return (model(get("x")) - get("y")) ** 2

    exact = whole(mlp(), lambda m: ((m(X) - REAL) ** 2).mean())
    assert relative(stepped(mlp(), batch, loss, micro_batch=micro), exact) < BAR


def test_batch_axis() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch["x"].T) * batch["table"].sum() - batch["y"]) ** 2

    table = torch.ones(3, dtype=torch.float64) / 3
    exact = whole(mlp(), lambda m: ((m(X) - REAL) ** 2).mean())
    batch = {"x": X.T.contiguous(), "y": REAL, "table": table}
    for micro in MICRO:
        ours = stepped(mlp(), batch, loss, micro_batch=micro, batch_axis={"x": 1, "table": None})
        assert relative(ours, exact) < BAR


@pytest.mark.parametrize("sizes", [(4, 4, 3), (1, 10), (0, 11), (5, 0, 6), (11,)])
@pytest.mark.parametrize("micro", ["auto", 1, 3])
def test_windows_of_micro_batches(sizes: tuple[int, ...], micro: int | str) -> None:
    exact = whole(mlp(), lambda m: F.cross_entropy(m(X), IGNORED))
    pieces = zip(X.split(list(sizes)), IGNORED.split(list(sizes)), strict=True)
    ours = stepped(mlp(), wb.MicroBatches(pieces, samples=N), nn.CrossEntropyLoss(), micro_batch=micro)
    assert relative(ours, exact) < BAR


def test_only_one_micro_batch_of_a_window_is_alive() -> None:
    import weakref

    alive: list[Any] = []

    def pieces() -> Any:
        for start in range(0, N, 2):
            x = X[start : start + 2].clone()
            assert sum(ref() is not None for ref in alive) <= 1
            alive.append(weakref.ref(x))
            yield x, CLASSES[start : start + 2]
            del x

    stepped(mlp(), wb.MicroBatches(pieces()), nn.CrossEntropyLoss())
    assert len(alive) == 6


@pytest.mark.parametrize("micro", [1, 4, 11])
def test_clipping_sees_the_finished_gradient(micro: int) -> None:
    model = mlp()

    def clipped(m: nn.Module) -> torch.Tensor:
        F.mse_loss(m(X), REAL).backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5)
        before = {name: p.detach().clone() for name, p in m.named_parameters()}
        torch.optim.SGD(m.parameters(), lr=0.1).step()
        return updates(m, before)

    exact = clipped(copy.deepcopy(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), micro_batch=micro, clip_norm=0.5)
    report = step((X, REAL))
    assert relative(updates(model, before), exact) < BAR
    assert report.grad_norm > 0.5  # before clipping
    assert float(wb.step.report.norm_of([p.grad for p in model.parameters()])) == pytest.approx(0.5, rel=1e-5)


def test_the_report_is_of_the_whole_batch() -> None:
    model = mlp()
    step = wb.Step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(weight=WEIGHTS), micro_batch=4
    )
    loss = F.cross_entropy(model(X), IGNORED, weight=WEIGHTS)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    report = step((X, IGNORED))
    assert report.loss == pytest.approx(loss.item(), rel=1e-14)
    assert report.weight == pytest.approx(float(WEIGHTS[[0, 1, 3]].sum()), rel=1e-14)
    assert (report.samples, report.micro_batches, report.skipped, report.noise_scale) == (N, 3, False, None)
    kept = report
    step((X, CLASSES))  # the norm of an earlier step outlives its gradient
    assert kept.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-13)
    assert wb.Step(model, torch.optim.SGD(model.parameters()), nn.MSELoss(reduction="sum"))((X, REAL)).weight == 1


def test_a_single_last_sample_does_not_break_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).double()
    for micro in (2, 4, 5, 10):
        with pytest.warns(wb.PromiseWarning, match=r"1 normalise"):
            stepped(model, (X, REAL), nn.MSELoss(), micro_batch=micro)
    stepped(model, (X, REAL), nn.MSELoss(), micro_batch=11)  # one micro-batch: nothing to say
    stepped(model.eval(), (X, REAL), nn.MSELoss(), micro_batch=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    bar = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    exact = whole(mlp(), lambda m: F.cross_entropy(m(X / 11), CLASSES))
    ours = stepped(
        mlp().to(dtype),
        ((X / 11).to(dtype), CLASSES),
        nn.CrossEntropyLoss(),
        micro_batch=4,
        make=lambda ps: torch.optim.SGD(ps, lr=1.0),
    )
    assert relative(ours.double(), exact * 10) < bar or dtype is not torch.float32
    # rounding of the weights themselves hides the update in half precision: compare the gradient
    model = mlp().to(dtype)
    wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.CrossEntropyLoss(), micro_batch=4)(
        ((X / 11).to(dtype), CLASSES)
    )
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    assert relative(gradient, exact * -10) < bar


def test_float16_sums_stay_finite() -> None:
    model = nn.Linear(1, 1, bias=False).half()
    nn.init.zeros_(model.weight)
    x, y = torch.full((4096, 1), 60.0).half(), torch.full((4096, 1), 60.0).half()
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), micro_batch=64)
    report = step((x, y))
    assert report.loss == 3600
    assert model.weight.grad.item() == pytest.approx(-7200, rel=5e-3)  # summed in half precision


def test_parameter_groups_frozen_unused_sparse_and_tied() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.table = nn.Embedding(5, 6, sparse=True)
            self.body = nn.Linear(6, 6, bias=False)
            self.tied = self.body
            self.unused = nn.Linear(6, 6)
            self.frozen = nn.Linear(6, 5).requires_grad_(False)
            self.double()

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.frozen(torch.tanh(self.tied(torch.tanh(self.body(self.table(tokens))))))

    def make(parameters: Any) -> torch.optim.Optimizer:
        ps = list(parameters)
        return torch.optim.SGD([{"params": ps[:1]}, {"params": ps[1:], "lr": 0.01}], lr=0.1)

    exact = whole(Net(), lambda m: F.cross_entropy(m(CLASSES), IGNORED), make)
    for micro in MICRO:
        ours = stepped(Net(), (CLASSES, IGNORED), nn.CrossEntropyLoss(), make, micro_batch=micro, clip_norm=1e6)
        assert relative(ours, exact) < BAR
    model = Net()
    before = model.unused.weight.detach().clone()
    wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())((CLASSES, IGNORED))
    assert torch.equal(model.unused.weight, before)


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adadelta", "Adamax", "ASGD", "Rprop"]
)
def test_every_optimizer_over_several_steps(name: str) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        options = {"momentum": 0.9, "weight_decay": 0.1} if name == "SGD" else {}
        return getattr(torch.optim, name)(parameters, lr=0.01, **options)

    ours, exact = mlp(), mlp()
    optimizer, step = make(exact.parameters()), None
    step = wb.Step(ours, make(ours.parameters()), nn.CrossEntropyLoss(), micro_batch=4)
    for turn in range(5):
        x = X.roll(turn, 0)
        optimizer.zero_grad()
        F.cross_entropy(exact(x), CLASSES).backward()
        optimizer.step()
        step((x, CLASSES))
        for a, b in zip(ours.parameters(), exact.parameters(), strict=True):
            assert relative(a.grad, b.grad) < 1e-9
    assert (
        relative(
            torch.cat([p.flatten() for p in ours.parameters()]), torch.cat([p.flatten() for p in exact.parameters()])
        )
        < 1e-9
    )
