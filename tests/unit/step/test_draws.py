"""Dropout masks are a function of (seed, step, position, call), whatever the micro-batch."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import wholebatch as wb

N = 12
MICRO = (1, 2, 3, 5, 7, 11, 12)


def gradient(model: nn.Module, batch: Any, micro: int, seed: int = 0, steps: int = 1, **options: Any) -> Tensor:
    model = copy.deepcopy(model)
    step = wb.Step(
        model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), micro_batch=micro, seed=seed, **options
    )
    for _ in range(steps):
        step(batch)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def data(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(N, *shape, dtype=torch.float64), torch.randn(N, 3, dtype=torch.float64)


class Functional(nn.Module):
    def __init__(self, call: Any, width: int = 6) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last, self.call = nn.Linear(width, 8), nn.Linear(8, 3), call
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.call(self.first(x))))


class Images(nn.Module):
    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv, self.dropout, self.last = nn.Conv2d(2, 4, 3, padding=1), dropout, nn.Linear(4 * 16, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.conv(x)).flatten(1))


class Volumes(nn.Module):
    def __init__(self, dropout: nn.Module, dimensions: int) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.dropout, self.last, self.dimensions = dropout, nn.Linear(64, 3), dimensions
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        shape = {1: (8, 8), 3: (8, 2, 2, 2)}[self.dimensions]
        return self.last(self.dropout(x.reshape(len(x), *shape)).flatten(1))


class Attention(nn.Module):
    """Batch-first or sequence-first attention; ``need_weights`` takes the path without the fused kernel."""

    def __init__(self, batch_first: bool, need_weights: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=batch_first)
        self.last, self.batch_first, self.need_weights = nn.Linear(8, 3), batch_first, need_weights
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return self.last(y.mean(1 if self.batch_first else 0))


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=batch_first)
        self.last, self.batch_first = nn.Linear(8, 3), batch_first
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x if self.batch_first else x.transpose(0, 1))
        return self.last(y.mean(1 if self.batch_first else 0))


class Flattened(nn.Module):
    """Dropout on tokens that were flattened into axis 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.dropout(self.first(x.reshape(-1, 8)), 0.5, self.training)
        return self.last(tokens.view(len(x), -1, 8).sum(1))


class DroppedWeight(nn.Module):
    """Dropout on a weight, which has no samples: one mask for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.weight = nn.Parameter(torch.randn(3, 5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, 0.5, self.training))


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "dropout": (lambda: Functional(nn.Dropout(0.5)), (6,)),
    "dropout in place": (lambda: Functional(nn.Dropout(0.3, inplace=True)), (6,)),
    "functional": (lambda: Functional(lambda x: F.dropout(x, 0.2)), (6,)),
    "alpha dropout": (lambda: Functional(nn.AlphaDropout(0.4)), (6,)),
    "feature alpha dropout": (lambda: Images(nn.FeatureAlphaDropout(0.4)), (2, 4, 4)),
    "dropout 1d": (lambda: Volumes(nn.Dropout1d(0.5), 1), (64,)),
    "dropout 2d": (lambda: Images(nn.Dropout2d(0.5)), (2, 4, 4)),
    "dropout 3d": (lambda: Volumes(nn.Dropout3d(0.5), 3), (64,)),
    "two layers": (lambda: Functional(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))), (6,)),
    "attention": (lambda: Attention(True, False), (5, 8)),
    "attention, weights": (lambda: Attention(True, True), (5, 8)),
    "attention, sequence first": (lambda: Attention(False, False), (5, 8)),
    "attention, sequence first, weights": (lambda: Attention(False, True), (5, 8)),
    "attention, as many tokens as samples": (lambda: Attention(False, True), (N, 8)),
    "encoder": (lambda: Encoder(True), (5, 8)),
    "encoder, sequence first": (lambda: Encoder(False), (5, 8)),
    "encoder, sequence first, as many tokens as samples": (lambda: Encoder(False), (N, 8)),
    "encoder, sequence first, tokens a multiple of samples": (lambda: Encoder(False), (2 * N, 8)),
    "encoder, one token": (lambda: Encoder(False), (1, 8)),
    "flattened tokens": (Flattened, (4, 8)),
    "dropped weight": (DroppedWeight, (5,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_micro_batch_does_not_matter_and_dropout_happens(name: str) -> None:
    make, shape = MODELS[name]
    model, batch = make(), data(*shape)
    whole = gradient(model, batch, N)
    for micro in MICRO:
        assert distance(gradient(model, batch, micro), whole) < 1e-13, micro
    assert distance(gradient(copy.deepcopy(model).eval(), batch, N), whole) > 1e-3 or name == "functional"
    assert distance(gradient(model, batch, N, seed=1), whole) > 1e-3
    assert distance(gradient(model, batch, N, steps=2), whole) > 1e-3
    if name not in ("dropped weight",):  # the same samples at other places are dropped otherwise
        moved = tuple(part.roll(1, 0) for part in batch)
        assert distance(gradient(model, moved, N), whole) > 1e-3


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("micro", MICRO)
def test_activation_checkpointing_draws_the_same_masks(reentrant: bool, micro: int) -> None:
    torch.manual_seed(2)
    body = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = copy.deepcopy(body)
            self.more = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.more(checkpoint(self.body, x, use_reentrant=reentrant))

    class Plain(Checkpointed):
        def forward(self, x: Tensor) -> Tensor:
            return self.more(self.body(x))

    torch.manual_seed(9)
    checkpointed = Checkpointed()
    plain = Plain()
    plain.load_state_dict(checkpointed.state_dict())
    x, y = data(6)
    exact = gradient(plain, (x, y), N)
    assert distance(gradient(checkpointed, (x.requires_grad_(), y), micro), exact) < 1e-13


class Uniform(nn.Module):
    """Drops weights of two heads per sample, all of one value up to rounding, which depends on how many samples run.

    So it is where all tokens of a sample are alike: attention is uniform.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.last = nn.Linear(8, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.full((2 * len(x), 4), 0.25, dtype=x.dtype)
        weights[2:3] += torch.finfo(x.dtype).eps / 4 * (len(x) > 1)  # the next number
        return self.last(x * F.dropout(weights, 0.5, self.training).view(len(x), 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_does_not_decide_where_the_samples_are(dtype: torch.dtype) -> None:
    inputs, targets = data(8)
    batch = inputs.to(dtype), targets.to(dtype)
    model = Uniform().to(dtype)
    whole = gradient(model, batch, N)
    for micro in (2, 3, 5):
        assert distance(gradient(model, batch, micro), whole) < (1e-12 if dtype is torch.float64 else 1e-5)


class Recorder(nn.Module):
    """Keeps the masks that a dropout layer drew."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.scale, self.p, self.masks = nn.Parameter(torch.ones(())), p, []

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.p)
        self.masks.append(dropped.detach() == 0)
        again = F.dropout(x, self.p)
        self.masks.append(again.detach() == 0)
        return (dropped + again) * self.scale


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_rate_and_independence(p: float) -> None:
    model = Recorder(p)
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), lambda m, b: m(b[0]), micro_batch=500)
    for _ in range(3):
        step((torch.ones(1000, 400),))
    whole = [torch.cat([model.masks[4 * s + c], model.masks[4 * s + 2 + c]]) for s in range(3) for c in range(2)]
    deviation = (p * (1 - p) / whole[0].numel()) ** 0.5
    for mask in whole:
        assert abs(mask.double().mean() - p) < 5 * deviation
        for axis in (0, 1):  # no pattern among neighbours
            both = (mask.narrow(axis, 1, mask.shape[axis] - 1) & mask.narrow(axis, 0, mask.shape[axis] - 1)).double()
            assert abs(both.mean() - p * p) < 6 * (p * p * (1 - p * p) / both.numel()) ** 0.5
    for i, a in enumerate(whole):  # nor between calls and steps
        for b in whole[:i]:
            both = (a & b).double().mean()
            assert abs(both - p * p) < 6 * (p * p * (1 - p * p) / a.numel()) ** 0.5


def test_values_of_the_functions_match_torch_where_nothing_is_random() -> None:
    """Mean and scale: kept values are what torch's are, dropped ones too."""
    x = torch.rand(64, 8, 4, 4, dtype=torch.float64) + 1
    for name in ("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout"):
        theirs = getattr(F, name)(x, 0.3, True)
        seen: list[Tensor] = []

        def loss(model: nn.Module, batch: Any, name: str = name, seen: list[Tensor] = seen) -> Tensor:
            seen.append(getattr(F, name)(batch, 0.3, True))
            return model(batch)

        model = Recorder(0.0)
        wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), loss)(x)
        dropped_theirs, dropped_ours = theirs[theirs < 0.9].unique(), seen[0][seen[0] < 0.9].unique()
        assert torch.allclose(dropped_theirs, dropped_ours)
        kept_ours, kept_theirs = seen[0] > 0.9, theirs > 0.9
        both = kept_ours & kept_theirs
        assert both.any()
        assert torch.allclose(seen[0][both], theirs[both])


def test_attention_with_masks_matches_the_formula() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, 5, 8, dtype=torch.float64) for _ in range(3))
    closed = torch.rand(4, 1, 5, 5) > 0.3
    closed[0, 0, 2] = False  # this query may look nowhere
    seen = {}

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        for name, options in {
            "plain": {},
            "causal": {"is_causal": True},
            "closed": {"attn_mask": closed},
            "added": {"attn_mask": torch.where(closed, 0.0, -5.0).double()},
            "scale": {"scale": 0.3},
            "grouped": {"enable_gqa": True},
        }.items():
            keys, values = (k[:, :1], v[:, :1]) if name == "grouped" else (k, v)
            tiny = F.scaled_dot_product_attention(q, keys, values, dropout_p=1e-12, **options)
            seen[name] = (tiny, F.scaled_dot_product_attention(q, keys, values, **options))
        return model(batch)

    model = Recorder(0.0)
    wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), loss)(torch.ones(4))
    for ours, theirs in seen.values():
        assert torch.allclose(ours, theirs, rtol=1e-9)


class Drawing(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.noisy, self.last = nn.Linear(6, 6), layer, nn.LazyLinear(3)
        self(torch.zeros(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.noisy(self.first(x))
        return self.last(y[0] if isinstance(y, tuple) else y)


class Rand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape)


class Torch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(x, 0.5, True)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.LSTM(6, 6, num_layers=2, dropout=0.5), "LSTM"),
        (Torch(), "Torch"),
        (nn.Sequential(nn.Dropout(0.5), Rand(), nn.Dropout(0.5)), "Rand"),
        (nn.RReLU(), "RReLU"),
    ],
)
def test_unkeyed_draws_are_said_once_naming_the_layer(layer: nn.Module, kind: str) -> None:
    model = Drawing(layer)
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), micro_batch=4)
    batch = torch.randn(N, 6), torch.randn(N, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            step(batch)
    assert [w.category for w in caught] == [wb.PromiseWarning]
    assert kind in str(caught[0].message)
    assert "noisy" in str(caught[0].message)


def test_a_model_that_begins_to_draw_later_is_noticed() -> None:
    model = Drawing(Rand())
    model.noisy = nn.Identity()
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), micro_batch=4)
    batch = torch.randn(N, 6), torch.randn(N, 3)
    step(batch)
    step(batch)
    model.noisy = Rand()
    with pytest.warns(wb.PromiseWarning, match=r"noisy \(Rand\)"):
        step(batch)


def test_unkeyed_draws_differ_between_micro_batches_and_steps() -> None:
    seen: list[Tensor] = []

    class Keep(Rand):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.rand(x.shape)
            if torch.is_grad_enabled():
                seen.append(noise)
            return x + noise

    for _ in range(2):
        model = Drawing(Keep())
        step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), micro_batch=4)
        with pytest.warns(wb.PromiseWarning):
            step((torch.randn(N, 6), torch.randn(N, 3)))
        step((torch.randn(N, 6), torch.randn(N, 3)))
    draws = [noise for noise in seen if len(noise) == 4]
    first, second = draws[:6], draws[-6:]
    assert len({tuple(noise.flatten().tolist()) for noise in first}) == 6
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # a function of seed, step and position


def test_the_callers_generator_is_given_back() -> None:
    model = Functional(nn.Dropout(0.5))
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss(), micro_batch=5)
    originals = {name: getattr(F, name) for name in ("dropout", "scaled_dot_product_attention", "alpha_dropout")}
    before = torch.get_rng_state()
    batch = data(6)
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())
    before = torch.get_rng_state()
    step(batch)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(wb.BatchError):
        step((batch[0], batch[1][:3]))
    with pytest.raises(ZeroDivisionError):
        wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), lambda m, b: 1 / 0)(batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert originals == {name: getattr(F, name) for name in originals}


def test_a_windows_loader_draws_from_the_callers_generator() -> None:
    model = Functional(nn.Dropout(0.5))
    torch.manual_seed(4)
    expected = [torch.randn(3, 6, dtype=torch.float64) for _ in range(4)]
    after = torch.rand(())
    seen: list[Tensor] = []

    def pieces() -> Any:
        for _ in range(4):
            seen.append(torch.randn(3, 6, dtype=torch.float64))
            yield seen[-1], torch.zeros(3, 3, dtype=torch.float64)

    torch.manual_seed(4)
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss())
    step(wb.MicroBatches(pieces(), samples=12))
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))
    assert torch.equal(torch.rand(()), after)


def test_windows_and_batches_draw_alike_and_position_shifts() -> None:
    model, (x, y) = Functional(nn.Dropout(0.5)), data(6)

    def of(batch: Any, **options: Any) -> Tensor:
        m = copy.deepcopy(model)
        wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.0), nn.MSELoss(reduction="sum"), micro_batch=4)(
            batch, **options
        )
        return torch.cat([p.grad.flatten() for p in m.parameters()])

    whole = of((x, y))
    assert distance(of(wb.MicroBatches(zip(x.split([5, 7]), y.split([5, 7]), strict=True))), whole) < 1e-14
    parts = of((x[:5], y[:5])) + of((x[5:], y[5:]), position=5)
    assert distance(parts, whole) < 1e-14
    assert distance(of((x[:5], y[:5])) + of((x[5:], y[5:])), whole) > 1e-3


def test_native_dropout_is_left_alone() -> None:
    model, batch = Functional(nn.Dropout(0.5)), data(6)
    torch.manual_seed(3)
    first = gradient(model, batch, 4, dropout="native")
    second = gradient(model, batch, 4, dropout="native")
    torch.manual_seed(3)
    assert torch.equal(gradient(model, batch, 4, dropout="native"), first)
    assert distance(second, first) > 1e-3


def test_a_probe_changes_no_buffers() -> None:
    class Normed(Encoder):
        def __init__(self) -> None:
            super().__init__(False)
            self.norm = nn.BatchNorm1d(3).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(super().forward(x))

    model = Normed()
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), nn.MSELoss())
    step(data(N, 8))  # as many tokens as samples: a probe has to decide
    assert model.norm.num_batches_tracked == 1


def test_state_resumes_masks_and_schedule() -> None:
    def fresh() -> tuple[nn.Module, Any, wb.Step]:
        model = Functional(nn.Dropout(0.5))
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        return (
            model,
            optimizer,
            wb.Step(model, optimizer, nn.MSELoss(), micro_batch=5, schedule=wb.CosineScheduler(10, base_lr=0.1)),
        )

    batch = data(6)
    model, _, step = fresh()
    for _ in range(6):
        step(batch)
    first, opt, half = fresh()
    for _ in range(3):
        half(batch)
    second, opt2, resumed = fresh()
    second.load_state_dict(first.state_dict())
    opt2.load_state_dict(opt.state_dict())
    resumed.load_state_dict(half.state_dict())
    for _ in range(3):
        resumed(batch)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.parameters(), strict=True))
    with pytest.raises(wb.InputError, match="seed 0"):
        wb.Step(second, opt2, nn.MSELoss(), seed=3).load_state_dict(half.state_dict())
    with pytest.raises(wb.InputError, match="schedule"):
        wb.Step(second, opt2, nn.MSELoss()).load_state_dict(half.state_dict())
