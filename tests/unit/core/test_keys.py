"""Keyed randomness: a function of its arguments, well spread, and the same for ever."""

from __future__ import annotations

import pytest
import torch

from wholebatch.core import keys


def test_a_key_depends_on_every_part() -> None:
    own = keys.key(1, "order", 2, 3)
    others = [
        keys.key(2, "order", 2, 3),
        keys.key(1, "augment", 2, 3),
        keys.key(1, "order", 3, 2),
        keys.key(1, "order", 2),
        keys.key(1, "order", 2, 3, 0),
        keys.key(1, "order", 2, 3 + 2**32),
        keys.key(1 + 2**40, "order", 2, 3),
    ]
    assert len({own, *others}) == 8
    assert all(0 <= each < 2**64 for each in (own, *others, keys.key(-5, "init", -7)))
    purposes = ("order", "augment", "dropout", "generator", "split", "init")
    assert len({keys.key(seed, purpose) for seed in range(50) for purpose in purposes}) == 300


def test_keys_stay_what_they_are() -> None:
    """A checkpoint's seed means the same numbers in the next version."""
    assert keys.key(0, "order", 3) == 3928045212293821604
    assert keys.random_bits(7, 5, 3).tolist() == [-136293922, 1617001526, -1979349377]
    rows = keys.uniform(7, torch.tensor([5, 9]), 2).flatten().tolist()
    assert rows == pytest.approx([0.7941409945, 0.6310920715, 0.2611606121, 0.5670651793], abs=1e-9)


def test_generators_are_seeded_by_their_key() -> None:
    first, again, other = (keys.generator(3, "split", index) for index in (1, 1, 2))
    draws = [torch.rand(4, generator=each) for each in (first, again, other)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_bits_depend_on_key_and_counter_alone() -> None:
    whole = keys.random_bits(11, 100, 1000)
    assert torch.equal(whole[333:], keys.random_bits(11, 433, 667))
    assert not torch.equal(whole, keys.random_bits(12, 100, 1000))
    assert not torch.equal(whole, keys.random_bits(11 + (1 << 40), 100, 1000))
    edge = keys._SPAN - 3
    assert torch.equal(keys.random_bits(11, edge, 9)[3:], keys.random_bits(11, keys._SPAN, 6))
    assert not torch.equal(keys.random_bits(11, keys._SPAN, 6), keys.random_bits(11, 0, 6))
    assert keys.random_bits(11, 0, 0).shape == (0,)


@pytest.mark.parametrize("key", [0, 1, 2**63 + 5, 2**32])
def test_bits_are_fair_and_unrelated(key: int) -> None:
    n = 1 << 16
    bits = keys.random_bits(key, 0, n)
    ones = torch.stack([((bits >> place) & 1).double() for place in range(32)])
    assert (ones.mean(1) - 0.5).abs().max() < 5 * 0.5 / n**0.5  # five standard deviations
    centred = ones - 0.5
    upper = centred[16:]  # masks and draws compare the upper bits; the lowest ones of a product are weaker
    neighbours = (upper[:, 1:] * upper[:, :-1]).mean(1).abs().max()
    assert neighbours < 5 * 0.25 / n**0.5
    pairs = (centred @ centred.T / n).fill_diagonal_(0).abs().max()
    assert pairs < 6 * 0.25 / n**0.5
    assert bits.unique().numel() > n - 40  # chance gives one collision in half a million pairs


def test_bits_of_neighbouring_keys_are_unrelated() -> None:
    n = 1 << 15
    rows = torch.stack([keys.random_bits(keys.key(0, "dropout", 0, call), 0, n).double() for call in range(8)])
    correlations = torch.corrcoef(rows).fill_diagonal_(0).abs().max()
    assert correlations < 5 / n**0.5


def test_masks_do_not_correlate_with_themselves() -> None:
    """Of many keys: a multiplier that depends on the key leaves some with strong patterns."""
    n = 1 << 15
    for index in range(60):
        kept = (keys.random_bits(keys.key(index, "dropout", 1, 2), 0, n) < 0).double() - 0.5
        for lag in (1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128):
            correlation = (kept[:-lag] * kept[lag:]).mean() / 0.25
            assert abs(correlation) < 5.5 / n**0.5, (index, lag)


def test_uniform_rows_depend_on_their_index_alone() -> None:
    indices = torch.tensor([4, 0, 1 << 30, 4])
    rows = keys.uniform(3, indices, 5)
    assert rows.dtype == torch.float32
    assert torch.equal(rows[0], rows[3])
    assert torch.equal(keys.uniform(3, indices[2:3], 5)[0], rows[2])
    assert not torch.equal(keys.uniform(4, indices, 5), rows)
    for kind in (torch.int64, torch.int32):
        given = indices.to(kind)
        assert torch.equal(keys.uniform(3, given, 5), rows)
        assert given.tolist() == [4, 0, 1 << 30, 4]  # not changed in place


def test_uniform_is_uniform() -> None:
    draws = keys.uniform(9, torch.arange(1 << 14), 4).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 5 * (1 / 12) ** 0.5 / 128
    assert (draws.var(0) - 1 / 12).abs().max() < 0.002
    assert torch.corrcoef(draws.T).fill_diagonal_(0).abs().max() < 5 / 128
    assert (draws[1:] * draws[:-1]).mean().item() == pytest.approx(0.25, abs=0.005)
