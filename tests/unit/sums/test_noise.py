"""The estimate of the gradient noise scale, against gradients of known mean and covariance."""

from __future__ import annotations

import math

import pytest
import torch

from wholebatch.core.errors import InputError
from wholebatch.sums import NoiseScale
from wholebatch.sums.noise import pair_estimate


def gradients(steps: int, first: int, samples: int, seed: int = 0, d: int = 20) -> tuple[torch.Tensor, ...]:
    """Norms of the mean gradients of the first and of all samples, and the true |G|² and tr(Σ)."""
    generator = torch.Generator().manual_seed(seed)
    mean = 0.3 * torch.randn(d, generator=generator, dtype=torch.float64)
    scatter = 0.5 + torch.rand(d, generator=generator, dtype=torch.float64)
    drawn = mean + scatter * torch.randn(steps, samples, d, generator=generator, dtype=torch.float64)
    small, big = (drawn[:, :count].mean(1).norm(dim=1) for count in (first, samples))
    return small, big, mean.square().sum(), scatter.square().sum()


@pytest.mark.parametrize(("first", "samples"), [(1, 2), (3, 16), (12, 16)])
def test_the_pair_is_unbiased(first: int, samples: int) -> None:
    small, big, true_g, true_t = gradients(20_000, first, samples)
    g, t = pair_estimate(small.square(), big.square(), first, samples)  # type: ignore[arg-type]
    for found, true in ((g, true_g), (t, true_t)):
        error = float(found.mean() - true)
        assert abs(error) < 4 * float(found.std()) / math.sqrt(20_000)
        assert float(found.std()) / math.sqrt(20_000) < 0.05 * float(true)  # so that a bias would be seen


def test_the_ratio_comes_within_a_few_percent() -> None:
    small, big, g, t = gradients(3_000, 4, 32)
    noise = NoiseScale(decay=1.0)
    for pair in zip(small.tolist(), big.tolist(), strict=True):
        noise.add(*pair, 4, 32)
    low, high = noise.interval or (0.0, 0.0)
    assert noise.value == pytest.approx(float(t / g), rel=0.04)
    assert low < float(t / g) < high
    assert high - low < 0.2 * float(t / g)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = known = 0
    for seed in range(150):
        small, big, g, t = gradients(60, 4, 32, seed=seed)
        noise = NoiseScale()
        for pair in zip(small.tolist(), big.tolist(), strict=True):
            noise.add(*pair, 4, 32)
        if noise.interval is not None:
            known += 1
            held += noise.interval[0] <= float(t / g) <= noise.interval[1]
    assert known > 140
    assert 0.90 < held / known <= 0.995


def test_unequal_steps_count_by_what_they_tell() -> None:
    noise = NoiseScale(decay=1.0)
    for first in (4, 31):  # the second's halves are nearly the same samples: nearly all of it is noise
        small, big, g, t = gradients(1500, first, 32)
        for pair in zip(small.tolist(), big.tolist(), strict=True):
            noise.add(*pair, first, 32)
    assert noise.value == pytest.approx(float(t / g), rel=0.06)


def test_nothing_is_known_at_first_nor_of_noise_alone() -> None:
    noise = NoiseScale()
    assert noise.value is None
    assert noise.interval is None
    assert "not known" in noise.sentence()
    noise.windows = 3
    assert "not measured" in noise.sentence()
    small, big, *_ = gradients(9, 4, 32)
    for pair in zip(small.tolist(), big.tolist(), strict=True):
        noise.add(*pair, 4, 32)
    assert noise.value is None
    blind = NoiseScale()
    drawn = torch.randn(200, 32, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for one in drawn:
        blind.add(one[:4].mean(0).norm(), one.mean(0).norm(), 4, 32)
    assert blind.value is None


def test_what_is_not_finite_or_says_nothing_is_passed_over() -> None:
    noise = NoiseScale()
    for _ in range(20):
        noise.add(math.sqrt(5), math.sqrt(2), 2, 8)
        noise.add(torch.tensor(math.nan), 1.0, 2, 8)
        noise.add(1.0, 1.0, 8, 8)
        noise.add(1.0, 1.0, 0, 8)
    assert noise.value == pytest.approx(8.0)


def test_a_state_goes_on_as_if_nothing_had_been() -> None:
    small, big, *_ = gradients(40, 4, 32)
    whole, first, second = NoiseScale(), NoiseScale(), NoiseScale()
    for place, pair in enumerate(zip(small, big, strict=True)):
        whole.add(*pair, 4, 32)
        whole.windows += 1
        one = first if place < 15 else second
        if place == 15:
            second.load_state_dict(first.state_dict())
        one.add(*pair, 4, 32)
        one.windows += 1
    assert second.interval == whole.interval != first.interval
    assert second.state_dict() == whole.state_dict()
    with pytest.raises(InputError, match="no state of a noise scale"):
        second.load_state_dict({"decay": 1})


def test_the_first_steps_are_measured_and_then_one_of_sixteen() -> None:
    noise, due = NoiseScale(), []
    for _ in range(48):
        due.append(noise.due)
        noise.windows += 1
    assert due == [True] * 12 + [False] * 4 + [True, *[False] * 15] * 2
