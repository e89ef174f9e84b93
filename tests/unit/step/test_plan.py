"""The plan of a step's memory against what torch's CPU allocator really gives out (as the profiler reports it)."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.errors import ConfigError, InputError
from wholebatch.step.plan import bytes_of
from wholebatch.step.recompute import recompute

MOMENTUM = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAMW = functools.partial(torch.optim.AdamW, lr=0.1)


class Block(nn.Module):
    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.second, self.other = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.short = nn.Conv2d(width, out, 1, stride, bias=False) if stride > 1 or width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.other(self.second(F.relu(self.norm(self.first(x)))))
        return F.relu(y + self.short(x))


def resnet18() -> nn.Module:
    sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2)]
    blocks = [Block(*size) for size in (*sizes, (512, 512, 1))]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.place = nn.Conv2d(3, 96, 4, 4), nn.Parameter(torch.zeros(1, 64, 96))
        layer = nn.TransformerEncoderLayer(96, 4, 384, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.patches(x).flatten(2).mT + self.place).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(500, 64), nn.LSTM(64, 128, 2, batch_first=True)
        self.head = nn.Linear(128, 500)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x))[0]).transpose(1, 2)


def lenet() -> nn.Module:
    return wb.models.build("lenet", num_classes=10, in_channels=3)


def images() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 3, 32, 32), torch.zeros(3, dtype=torch.int64)


def tokens() -> tuple[Tensor, Tensor]:
    return torch.zeros(3, 40, dtype=torch.int64), torch.zeros(3, 40, dtype=torch.int64)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "lenet": (lenet, images),
    "resnet18": (resnet18, images),
    "vit": (ViT, images),
    "lstm": (Recurrent, tokens),
}


def measured(model: nn.Module, batch: Any, make: Any, samples: int, precision: str = "fp32") -> int:
    """The allocator's peak in a step of two micro-batches, and what was there before."""
    x, y = (torch.zeros((2 * samples, *part.shape[1:]), dtype=part.dtype) for part in batch)
    optimizer = make(model.parameters())
    loss = nn.CrossEntropyLoss()
    step = wb.Step(model, optimizer, loss, micro_batch=samples, precision=precision, dropout="native")
    step((x, y))
    optimizer.zero_grad()
    state = [item for kept in optimizer.state.values() for item in kept.values() if isinstance(item, Tensor)]
    there = [*model.parameters(), *model.buffers(), *state, x[:samples], y[:samples]]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step((x, y))
    now = peak = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak + sum(item.numel() * item.element_size() for item in there)


@pytest.mark.filterwarnings("ignore::wholebatch.core.errors.PromiseWarning")  # batch norm; sizes are all that counts
@pytest.mark.parametrize(
    ("name", "samples", "make", "precision"),
    [
        ("lenet", 8, MOMENTUM, "fp32"),
        ("lenet", 100, ADAMW, "fp32"),
        ("resnet18", 4, MOMENTUM, "fp32"),
        ("resnet18", 12, ADAMW, "fp32"),
        ("vit", 6, ADAMW, "fp32"),
        ("vit", 30, MOMENTUM, "fp32"),
        ("vit", 16, MOMENTUM, "bf16"),
        ("lstm", 8, MOMENTUM, "fp32"),
        ("lstm", 40, ADAMW, "fp32"),
    ],
)
def test_within_a_tenth_of_what_the_allocator_gives(name: str, samples: int, make: Any, precision: str) -> None:
    build, data = MODELS[name]
    model = build()
    found = wb.plan(model, data(), make, precision, loss=nn.CrossEntropyLoss())
    real = measured(model, data(), make, samples, precision)
    assert found.peak(samples) == pytest.approx(real, rel=0.1)


@pytest.mark.filterwarnings("ignore::wholebatch.core.errors.PromiseWarning")
@pytest.mark.parametrize(("name", "layers"), [("resnet18", "3, 4, 5, 6, 7"), ("vit", "layers.layers.*")])
def test_recomputed_layers(name: str, layers: str) -> None:
    build, data = MODELS[name]
    model = build()
    plain = wb.plan(model, data(), MOMENTUM, loss=nn.CrossEntropyLoss())
    found = wb.plan(model, data(), MOMENTUM, loss=nn.CrossEntropyLoss(), recompute_layers=layers)
    assert found.activations_per_sample < 0.7 * plain.activations_per_sample
    assert found.peak(10) == pytest.approx(measured(recompute(model, layers), data(), MOMENTUM, 10), rel=0.1)


def test_sizes_of_what_stays() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20), nn.Linear(20, 5)).requires_grad_(False)
    model[2].requires_grad_(True)
    optimizer = torch.optim.Adam(model[2].parameters())
    found = wb.plan(model, (torch.zeros(4, 10),), optimizer)
    assert found.parameters == 4 * (200 + 20 + 40 + 100 + 5)
    assert found.gradients == 4 * 105
    assert found.optimizer == 2 * 4 * 105 + 2 * 4  # two moments, and a step count for each parameter
    assert found.buffers == 4 * 40 + 8
    assert not optimizer.state
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_stays_as_it_is() -> None:
    model = lenet()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    wb.plan(model, images(), MOMENTUM).peak(7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    found = wb.plan(lenet(), images(), MOMENTUM, memory="20 MB", loss=nn.CrossEntropyLoss())
    size = found.largest()
    assert found.peak(size) <= 20_000_000
    assert found.peak(size + max(2, size // 50)) > 20_000_000
    assert found.largest("1kB") == 0
    assert found.largest(10**12) > 10**6


def test_for_programs() -> None:
    found = wb.plan(lenet(), images(), MOMENTUM, memory="20 MB", loss=nn.CrossEntropyLoss())
    numbers = json.loads(found.to_json(batch_size=4096))
    assert numbers["largest_micro_batch"] == found.largest()
    assert numbers["micro_batches"] == -(-4096 // found.largest())
    assert numbers["peak"] == found.peak(found.largest())


def test_sharding_divides_what_stays() -> None:
    whole = wb.plan(resnet18(), images(), ADAMW)
    part = wb.plan(resnet18(), images(), ADAMW, shard=4)
    assert part.parameters == -(-whole.parameters // 4)
    assert part.optimizer == -(-whole.optimizer // 4)
    static = whole.parameters + whole.gradients + whole.optimizer
    largest = max(sum(p.numel() * 4 for p in child.parameters()) for child in resnet18().children())
    assert whole.peak(8) - part.peak(8) == pytest.approx(static * 3 / 4 - largest, abs=16)


def test_what_is_refused() -> None:
    class Looking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0].reshape(-1, 2) if x.sum() > 0 else x

    with pytest.raises(InputError, match="must not depend on values"):
        wb.plan(nn.Sequential(nn.Linear(2, 2), Looking()), torch.zeros(3, 2))
    with pytest.raises(ConfigError, match="precision='fp8'"):
        wb.plan(lenet(), images(), precision="fp8")
    with pytest.raises(ConfigError, match="needs to know the memory"):
        wb.plan(lenet(), images()).largest()
    with pytest.raises(InputError, match="micro_batch=0"):
        wb.plan(lenet(), images()).peak(0)
    with pytest.raises(ConfigError, match="no layer is named 'conf1'; did you mean 'conv1'"):
        wb.plan(lenet(), images(), recompute_layers="conf1")
    for wrong in ("8 goats", "-3GB", "0", "GiB"):
        with pytest.raises(ConfigError, match="expected bytes or a number with a unit"):
            bytes_of(wrong)


def test_recomputed_layers_give_the_same_step() -> None:
    found = []
    for layers in (None, "0, 2*"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        model = model.double()
        names = list(model.state_dict())
        if layers is not None:
            recompute(model, layers)
        assert list(model.state_dict()) == names
        step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), micro_batch=3, seed=2)
        torch.manual_seed(3)
        step((torch.randn(8, 4).double(), torch.randn(8, 2).double()))
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_grouped_batch_norm_is_planned():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    batch = torch.randn(8, 3, 12, 12), torch.arange(8) % 4
    model(batch[0])
    plain = wb.plan(model, batch, loss=nn.CrossEntropyLoss())
    grouped = wb.plan(wb.convert_batchnorm(model, group=2), batch, loss=nn.CrossEntropyLoss())
    assert grouped.activations_per_sample >= plain.activations_per_sample
