"""Grouped batch norm, in float64: torch's own where the group is the batch; the same for every micro-batch."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.step.recompute import recompute

BAR = 1e-12
CE = nn.CrossEntropyLoss()


class Tokens(nn.Module):
    """Batch norm over tokens, flattened: those of a sample together, or the sequence first; or not flattened."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 3, 4)
        if self.way == "sequence first":
            flat = self.norm(tokens.transpose(0, 1).reshape(-1, 4))
            tokens = flat.view(3, -1, 4).transpose(0, 1)
        elif self.way == "channels in the middle":
            tokens = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        else:
            tokens = self.norm(tokens.reshape(-1, 4)).view(-1, 3, 4)
        return self.out(F.relu(tokens).flatten(1))


class Twice(nn.Module):
    """A norm that is used twice, in the middle of what is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.norm(self.first(F.relu(self.norm(x))))))


def flat(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3))


def images(norm: Callable[[int], nn.Module], shape: tuple[int, ...], conv: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, shape), conv(shape[0], 4, 1), norm(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "1d": flat,
    "cumulative": lambda: flat(momentum=None),
    "no statistics": lambda: flat(track_running_stats=False),
    "not affine": lambda: flat(affine=False),
    "2d": lambda: images(nn.BatchNorm2d, (3, 2, 2), nn.Conv2d),
    "3d": lambda: images(nn.BatchNorm3d, (3, 2, 2, 1), nn.Conv3d),
    "sync": lambda: images(nn.SyncBatchNorm, (3, 2, 2), nn.Conv2d),
    "twice": Twice,
    "tokens": lambda: Tokens("flattened"),
    "sequence first": lambda: Tokens("sequence first"),
    "channels in the middle": lambda: Tokens("channels in the middle"),
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(5)
    model = MODELS[name]().double()
    with torch.no_grad(), warnings.catch_warnings():
        model.eval()(data(2)[0])  # lazy layers learn their sizes
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.train()


def data(samples: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(samples)
    return torch.randn(samples, 12, generator=draw, dtype=torch.float64), torch.arange(samples) % 3


def stepped(model: nn.Module, micro: int | str, samples: int = 21, steps: int = 2, **options: Any) -> list[Tensor]:
    """Weights, buffers and gradients after some steps."""
    step = wb.Step(
        model, torch.optim.SGD(model.parameters(), lr=0.1), options.pop("loss", CE), micro_batch=micro, **options
    )
    for _ in range(steps):
        step(data(samples))
    return [*model.parameters(), *(b.double() for b in model.buffers()), *(p.grad for p in model.parameters())]


def apart(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).detach().norm() / (b.detach().norm() + 1e-3)) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "sync"])
@pytest.mark.parametrize("group", [21, None])
def test_a_batch_that_is_one_group_is_torchs_own(name: str, group: int | None) -> None:
    model = model_of(name)
    grouped = wb.convert_batchnorm(copy.deepcopy(model), group=group)
    assert apart(stepped(grouped, "auto"), stepped(model, "auto")) < BAR


@pytest.mark.parametrize("name", MODELS)
def test_every_micro_batch_gives_the_same(name: str) -> None:
    one = stepped(wb.convert_batchnorm(model_of(name), group=4), "auto")
    for micro in (4, 8, 12, 100):
        assert apart(stepped(wb.convert_batchnorm(model_of(name), group=4), micro), one) < BAR, micro
    assert apart(stepped(wb.convert_batchnorm(model_of(name), group=8), 8), one) > 1e-3  # it matters at all


@pytest.mark.parametrize(
    ("samples", "sizes"), [(21, [4, 4, 4, 4, 5]), (22, [4, 4, 4, 4, 4, 2]), (20, [4] * 5), (3, [3])]
)
def test_groups_and_their_statistics_are_these(samples: int, sizes: list[int]) -> None:
    """By hand: torch's layer on each group; the means weighted by samples; a rest of one joins."""
    x, _ = data(samples)
    model = wb.convert_batchnorm(nn.Sequential(nn.BatchNorm1d(12, momentum=0.3), nn.Linear(12, 3)).double(), group=4)
    outputs: list[Tensor] = []
    model[0].register_forward_hook(lambda layer, given, output: outputs.append(output.detach()))
    stepped(model, 4, samples, steps=1)
    groups = x.split(sizes)
    expected = torch.cat([F.batch_norm(group, None, None, training=True) for group in groups])
    assert apart([torch.cat(outputs)], [expected]) < BAR
    mean = sum(len(g) * g.mean(0) for g in groups) / samples
    variance = sum(len(g) * g.var(0) for g in groups) / samples
    assert apart([model[0].running_mean, model[0].running_var], [0.3 * mean, 0.7 + 0.3 * variance]) < BAR
    assert int(model[0].num_batches_tracked) == 1


@pytest.mark.parametrize("micro", [4, 8, "auto"])
@pytest.mark.parametrize("name", ["2d", "twice", "tokens"])
def test_recomputed_layers_count_once(name: str, micro: int | str) -> None:
    plain = stepped(wb.convert_batchnorm(model_of(name), group=4), micro)
    again = recompute(wb.convert_batchnorm(model_of(name), group=4), "norm" if name != "2d" else "1, 2")
    assert apart(stepped(again, micro), plain) < BAR


@pytest.mark.parametrize("group", [4, None])
def test_two_passes_count_once(group: int | None) -> None:
    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(z @ z.T, labels)

    whole = wb.WholeBatchLoss(lambda model, batch: (F.normalize(model(batch[0])), batch[1]), loss)
    found = [
        stepped(wb.convert_batchnorm(model_of("1d"), group=group), micro, loss=whole)
        for micro in ("auto", 100, 8)[: 3 if group else 2]
    ]
    assert all(apart(other, found[0]) < BAR for other in found[1:])


def test_a_step_that_is_skipped_moves_no_statistics() -> None:
    model = wb.convert_batchnorm(model_of("1d"), group=4)
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, micro_batch=4, nonfinite="skip")
    x, y = data(12)
    before = copy.deepcopy(model.state_dict())
    assert step((x * float("nan"), y)).skipped
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert not step((x, y)).skipped
    assert int(model[1].num_batches_tracked) == 1


def test_draws_by_nothing_keyed_do_not_disturb() -> None:
    """Dropout of torch's own, and a probe in the middle of it, draw what they would."""
    torch.manual_seed(1)
    one = stepped(wb.convert_batchnorm(model_of("1d"), group=21), "auto", dropout="native")
    torch.manual_seed(1)
    plain = stepped(model_of("1d"), "auto", dropout="native")
    assert apart(one, plain) < BAR
    draws = []
    for group in (21, 4):
        torch.manual_seed(1)
        stepped(wb.convert_batchnorm(model_of("1d"), group=group), "auto", dropout="native")
        draws.append(torch.rand(1))
    assert torch.equal(*draws)


def test_outside_of_a_step_the_batch_given_is_cut() -> None:
    x, _ = data(10)
    layer = wb.convert_batchnorm(nn.BatchNorm1d(12).double(), group=4)
    output = layer(x)
    expected = torch.cat([F.batch_norm(group, None, None, training=True) for group in x.split([4, 4, 2])])
    assert apart([output], [expected]) < BAR
    layer(x)
    assert int(layer.num_batches_tracked) == 2
    layer.eval()
    plain = nn.BatchNorm1d(12).double().eval()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), plain(x))


def test_state_dicts_names_and_objects_stay() -> None:
    model = model_of("1d")
    norm, names = model[1], list(model.state_dict())
    grouped = wb.convert_batchnorm(model, group=4)
    assert grouped is model
    assert grouped[1] is norm
    assert list(grouped.state_dict()) == names
    assert "group=4" in repr(grouped)
    model_of("1d").load_state_dict(grouped.state_dict())
    grouped.load_state_dict(model_of("1d").state_dict())
    step = wb.Step(grouped, torch.optim.SGD(grouped.parameters(), lr=0.1), CE)
    step(data(9))
    assert pickle.loads(pickle.dumps(grouped))[1].group == 4
    assert copy.deepcopy(step).align == 4
    assert wb.convert_batchnorm(grouped, group=None)[1].group is None


def test_a_model_converted_after_its_step_was_made_is_served() -> None:
    model = model_of("1d")
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, micro_batch=4)
    wb.convert_batchnorm(model, group=4)
    step(data(21))
    other = model_of("1d")
    stepped(wb.convert_batchnorm(other, group=4), "auto", steps=1)
    assert apart(list(model.parameters()), list(other.parameters())) < BAR


def test_a_frozen_norm_may_be_cut_anywhere() -> None:
    model = wb.convert_batchnorm(model_of("1d"), group=4)
    model[1].eval()
    other = copy.deepcopy(model)
    assert apart(stepped(model, 3), stepped(other, "auto")) < BAR


@pytest.mark.parametrize(
    ("window", "micro", "said"),
    [
        (lambda: data(21), 6, r"micro_batch=6 cuts through .* 4 and 8 are multiples of 4"),
        (lambda: data(21), 3, r"4 and 8 are multiples"),
        (lambda: wb.MicroBatches([data(4), data(6), data(3)]), 100, r"begins at sample 10, inside of .* 8 and 12"),
        (lambda: wb.MicroBatches([data(4), data(1)]), 100, r"holds sample 4 alone; a rest of one"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_what_can(window: Any, micro: int, said: str) -> None:
    model = wb.convert_batchnorm(model_of("2d"), group=4)
    before = copy.deepcopy(model.state_dict())
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, micro_batch=micro)
    with pytest.raises(wb.BatchError, match=said):
        step(window())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert model[2].place is None


def test_the_whole_batch_as_one_group_is_one_micro_batch() -> None:
    model = wb.convert_batchnorm(model_of("1d"), group=None)
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), CE, micro_batch=4)
    with pytest.raises(wb.BatchError, match=r"1 normalises the whole batch .* micro_batch=4 cannot cut the 9 samples"):
        step(data(9))
    with pytest.raises(wb.BatchError, match="whole batch as one group"):
        step(wb.MicroBatches([data(4), data(4)]))


class Apart(nn.Module):
    """Rows that are nobody's: the channels of a sequence, across samples."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x.T.view(4, 3, -1)).view(12, -1).T)


def test_rows_that_are_nobodys_are_refused() -> None:
    for samples in (21, 4 * 2):  # 4 rows: no multiple of the samples; or as many as there are
        model = wb.convert_batchnorm(Apart().double(), group=2)
        with pytest.raises(wb.InputError, match=r"norm sees 4 rows .* cannot be told"):
            stepped(model, "auto", samples) if samples == 21 else stepped(model, 4, samples)


class Alike(nn.Module):
    """Two rows per sample, all of one value up to rounding, which depends on how many samples run."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.full((2 * len(x), 3), 0.25, dtype=x.dtype)
        rows[1:2] += torch.finfo(x.dtype).eps / 4 * (len(x) % 2 == 0)
        return self.out(self.norm(rows).view(-1, 6))


def test_rounding_does_not_tell_whose_rows_they_are() -> None:
    for micro in (4, 8):  # two groups and four
        with pytest.raises(wb.InputError, match=r"norm sees \d+ rows .* cannot be told"):
            stepped(wb.convert_batchnorm(Alike().double(), group=2), micro, 8)


class Own(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def test_what_cannot_be_converted_is_refused_and_nothing_is_changed() -> None:
    for layer, said in (
        (Own(3), "1 is a Own, a batch norm with code of its own"),
        (nn.LazyBatchNorm1d(), "channels yet"),
    ):
        model = nn.Sequential(nn.BatchNorm1d(3), layer)
        with pytest.raises(wb.InputError, match=said):
            wb.convert_batchnorm(model)
        assert type(model[0]) is nn.BatchNorm1d
    for group in (1, 0, 2.0, True, "8"):
        with pytest.raises(wb.ConfigError, match="2 or more"):
            wb.convert_batchnorm(nn.BatchNorm1d(3), group=group)  # type: ignore[arg-type]
    with pytest.raises(wb.InputTypeError):
        wb.convert_batchnorm(3)  # type: ignore[arg-type]


def test_no_warning_and_the_warning_names_the_way_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped(wb.convert_batchnorm(model_of("1d"), group=4), 4)
    with pytest.warns(wb.PromiseWarning, match=r"wholebatch\.convert_batchnorm\(model, group=32\)"):
        stepped(model_of("1d"), 4)


def test_training_cuts_so_by_itself() -> None:
    weights = []
    for micro in (4, 12, "auto"):
        model = wb.convert_batchnorm(model_of("1d"), group=4)
        wb.train(
            model,
            data(33),
            loss=CE,
            optimizer=torch.optim.SGD,
            batch_size=14,
            epochs=1,
            micro_batch=micro,
            display=False,
        )
        weights.append([*model.parameters(), *(b.double() for b in model.buffers())])
    assert max(apart(other, weights[0]) for other in weights[1:]) < BAR


@pytest.mark.parametrize("group", [4, None])
def test_verify_cuts_where_it_may(group: int | None) -> None:
    model = model_of("1d")
    assert not wb.verify(copy.deepcopy(model), CE, data(40), show=False).ok
    check = wb.verify(wb.convert_batchnorm(model, group=group), CE, data(40), show=False)
    assert check.ok, str(check)
    for word in ("processes", "micro-batches of"):  # which the whole batch as one group cannot have here
        assert any(word in case.name for case in check.cases) == (group == 4)
