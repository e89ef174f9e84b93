"""Batches cut for logical workers: whole workers on each process, and no micro-batch over two of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from wholebatch.core.cuts import worker_edges
from wholebatch.core.processes import Alone
from wholebatch.data import BatchLoader, MixUp, StreamLoader

K, SAMPLES = 5, 23


class Place(Alone):
    """One of several processes, which never talk."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Rows(Dataset):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), index % 3


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.full((2,), float(index)), index) for index in range(SAMPLES)])


def loaders(kind: str, rank: int, size: int) -> Any:
    data = torch.arange(SAMPLES).float()[:, None, None, None].repeat(1, 1, 2, 2), torch.arange(SAMPLES) % 3
    if kind == "fetched":
        return BatchLoader(Rows(), 9, group=Place(rank, size), workers=1)
    mix = MixUp(3, alpha=0.4) if kind == "mixed" else None
    return BatchLoader(data, 9, group=Place(rank, size), mix=mix)


@pytest.mark.parametrize("kind", ["arrays", "fetched", "mixed"])
def test_the_parts_are_the_workers_whoever_has_them(kind: str) -> None:
    def epoch(rank: int, size: int) -> list[list[tuple[int, Any]]]:
        with loaders(kind, rank, size) as loader:
            found = []
            for window in loader.windows(2, logical=K):
                edges = worker_edges(window.whole_samples, K, rank, size)
                assert [window.position + edge for edge in window.edges] == list(edges)
                start, pieces = window.position, []
                for piece in window:
                    stop = start + len(piece[0])
                    assert not any(start < edge < stop for edge in edges)
                    pieces.append((start, piece))
                    start = stop
                assert start == edges[-1]
                found.append(pieces)
            return found

    whole = epoch(0, 1)
    assert [sum(len(piece[0]) for _, piece in pieces) for pieces in whole] == [9, 9, 5]
    for size in (2, 3, 5):
        parts = [epoch(rank, size) for rank in range(size)]
        for number, pieces in enumerate(whole):
            together = [piece for of_rank in parts for piece in of_rank[number]]
            assert [start for start, _ in together] == [start for start, _ in pieces]
            for (_, mine), (_, theirs) in zip(together, pieces, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_streams_are_cut_alike() -> None:
    def epoch(rank: int, size: int) -> list[Any]:
        loader = StreamLoader(Stream(), 9, group=Place(rank, size))
        return [(w.position, w.edges, w.whole_samples, [p[0] for p in w]) for w in loader.windows(2, logical=K)]

    parts = [epoch(rank, 3) for rank in range(3)]
    for number, (_, edges, whole, pieces) in enumerate(epoch(0, 1)):
        assert edges == worker_edges(whole, K)
        assert torch.equal(torch.cat([p for of in parts for p in of[number][3]]), torch.cat(pieces))
        assert len([p for of in parts for p in of[number][3]]) == len(pieces)
