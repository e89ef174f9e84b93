"""A traced model cut anywhere gives what the model gives, and cuts by cost are the best ones."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch import models
from wholebatch.core.errors import InputError
from wholebatch.parallel import balance
from wholebatch.parallel.balance import balanced, crossing_bytes, measured_cuts
from wholebatch.parallel.traced import Traced


class Skips(nn.Module):
    """Values that cross several places: a skip, a size, an attribute, an option that was not given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.gain = nn.Parameter(torch.full((3,), 2.0))
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 3)))

    def forward(self, x: Tensor, mask: Tensor | None = None, *, times: int = 2, flag: bool = False) -> Any:
        kept, rows = x, x.shape[0]
        for layer in self.layers:
            x = F.relu(layer(x)) * self.gain
        if mask is not None:
            x = x * mask
        if flag:
            x = x + 1
        x = self.inner(x + kept * times)
        return {"out": x.reshape(rows, -1), "gain": self.gain * 1}


@pytest.mark.parametrize("kwargs", [{}, {"mask": torch.rand(5, 3)}, {"times": 3, "flag": True}])
def test_every_cut_gives_the_same(kwargs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = Skips(), torch.randn(5, 3)
    traced = Traced(model, (x,), kwargs)
    expected = model(x, **kwargs)
    count = len(traced.steps)
    assert count > 10
    for first, second in itertools.combinations_with_replacement(range(1, count), 2):
        values: Any = traced.values((x,), kwargs)
        places = sorted({0, first, second, count})
        for start, stop in itertools.pairwise(places):
            values = traced.part(start, stop)(values)
        assert torch.equal(values["out"], expected["out"])
        assert torch.equal(values["gain"], expected["gain"])


@pytest.mark.parametrize("name", ["vit", "transformer_lm", "lenet"])
def test_models_of_this_library(name: str) -> None:
    torch.manual_seed(0)
    made = {
        "vit": lambda: models.ViT(width=12, depth=3, heads=2),
        "transformer_lm": lambda: models.TransformerLM(vocabulary=11, length=6, width=8, depth=3, heads=2),
        "lenet": lambda: models.LeNet(),
    }
    model = made[name]().eval()
    x = torch.randint(0, 11, (2, 6)) if name == "transformer_lm" else torch.randn(2, 3, 32, 32)
    traced = Traced(model, (x,), {})
    values = traced.values((x,), {})
    cuts = measured_cuts(traced, values, 3)
    places = [0, *(traced.place_of(cut) for cut in cuts), len(traced.steps)]
    assert places == sorted(set(places))
    for start, stop in itertools.pairwise(places):
        values = traced.part(start, stop)(values)
    assert torch.equal(torch.as_tensor(values), model(x))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_owned_tensors() -> None:
    model = models.TransformerLM(vocabulary=11, length=6, width=8, depth=2, heads=2)
    x = torch.randint(0, 11, (2, 6))
    traced = Traced(model, (x,), {})
    place = traced.place_of("layers.1")
    first, last = traced.part(0, place).tensors(), traced.part(place, len(traced.steps)).tensors()
    ids = [{id(tensor) for tensor in of} for of in (first, last)]
    assert ids[0] & ids[1] == {id(model.tokens.weight)}  # the table is the last layer, too
    assert ids[0] | ids[1] == {id(tensor) for tensor in (*model.parameters(), *model.buffers())}


def test_costs_are_balanced() -> None:
    generator = torch.Generator().manual_seed(1)
    for parts, groups in [(3, 3), (6, 2), (8, 4)]:
        costs = torch.rand(parts, generator=generator).tolist()

        def largest(cuts: Any, costs: list[float] = costs) -> float:
            return max(sum(costs[a:b]) for a, b in itertools.pairwise([0, *cuts, len(costs)]))

        found = balanced(costs, groups)
        assert largest(found) == min(map(largest, itertools.combinations(range(1, parts), groups - 1)))


class Takes(nn.Module):
    """So many seconds, by a clock of its own."""

    clock = 0.0

    def __init__(self, seconds: float, width: int) -> None:
        super().__init__()
        self.linear, self.seconds = nn.LazyLinear(width), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Takes.clock += self.seconds
        return self.linear(x)


def test_cuts_follow_the_measured_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "time", SimpleNamespace(perf_counter=lambda: Takes.clock))
    widths = {3: 1.0, 90: 4.0, 7: 4.0, 5: 1.0, 6: 1.0, 4: 1.0}
    model = nn.Sequential(*(Takes(seconds, width) for width, seconds in widths.items()))
    model(torch.randn(2, 4))
    traced = Traced(model, (torch.randn(64, 4),), {})
    assert measured_cuts(traced, traced.values((torch.randn(64, 4),), {}), 2) == ["2"]
    assert measured_cuts(traced, traced.values((torch.randn(64, 4),), {}), 3) == ["2", "3"]
    assert crossing_bytes(model, torch.randn(2, 4), 2) == 90 * 4


class Looks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_cut_is_refused() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(InputError, match=r"cannot be cut into stages: .*move what branches into a module of its own"):
        Traced(Looks(), (x,), {})
    assert len(Traced(nn.Sequential(nn.Linear(3, 3), Looks()), (x,), {}).steps) == 2  # inside a layer it may
    model = Skips()
    with pytest.raises(InputError, match=re.escape("no module 'layer.1'; did you mean 'layers.1'")):
        Traced(model, (x,), {}, ["layer.1"])
    model.idle = nn.Linear(1, 1)  # type: ignore[assignment]
    with pytest.raises(InputError, match="does not call 'idle'"):
        Traced(model, (x,), {}, ["idle"]).place_of("idle")
    pair = Traced(nn.Sequential(nn.Tanh(), nn.Tanh()), (x,), {})
    with pytest.raises(InputError, match="9 stages, but Sequential has 2 parts"):
        measured_cuts(pair, pair.values((x,), {}), 9)
    traced = Traced(model, (x,), {"times": 3})
    with pytest.raises(InputError, match="every micro-batch is called alike"):
        traced.values((x,), {"times": 2})
    with pytest.raises(InputError, match="every micro-batch is called alike"):
        traced.values((x,), {"times": 3, "mask": x})
