"""What ``Mean``, ``Accumulator`` and ``Accuracy`` cost, compared with the bare tensor code for the same numbers.

Each side runs the same number of calls, enough for its folds, and then reads its result; the two are interleaved
and the ratio of their medians is reported. Time is the thread's own: all of it is spent on one thread of the CPU,
and other processes do not count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.timing import one_thread, ratio
from wholebatch import Accumulator, Accuracy, Mean

CALLS = 2000
ROUNDS = 41


def mean() -> float:
    loss = torch.tensor(0.7)

    def ours() -> float:
        mean = Mean()
        for _ in range(CALLS):
            mean.add(loss)
        return mean.value

    def bare() -> float:
        total = torch.zeros(())
        for _ in range(CALLS):
            total += loss
        return total.item() / CALLS

    return ratio(ours, bare, ROUNDS)


def three_sums() -> float:
    loss, correct, n = torch.tensor(180.5), torch.tensor(200), 256

    def ours() -> list[float]:
        acc = Accumulator("loss", "correct", "n")
        for _ in range(CALLS):
            acc.add(loss, correct, n)
        return list(acc)

    def bare() -> list[float]:
        losses, hits, samples = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64), 0
        for _ in range(CALLS):
            losses += loss
            hits += correct
            samples += n
        return [losses.item(), hits.item(), samples]

    return ratio(ours, bare, ROUNDS)


def accuracy() -> float:
    generator = torch.Generator().manual_seed(0)
    batches: list[tuple[Tensor, Tensor]] = [
        (torch.randn(256, 10, generator=generator), torch.randint(10, (256,), generator=generator)) for _ in range(8)
    ]

    def ours() -> float:
        accuracy = Accuracy(10)
        for _ in range(CALLS // 16):
            for logits, targets in batches:
                accuracy.add(logits, targets)
        return accuracy.value

    def bare() -> float:
        correct, n = torch.zeros((), dtype=torch.int64), 0
        for _ in range(CALLS // 16):
            for logits, targets in batches:
                correct += (logits.argmax(1) == targets).sum()
                n += len(targets)
        return correct.item() / n

    return ratio(ours, bare, ROUNDS)


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for each claim."""
    with one_thread():
        return [
            ("Mean.add(value) to total += loss", mean(), 2.5),
            ("three named sums to the bare in-place code", three_sums(), 1.2),
            ("Accuracy.add, 256 x 10, to argmax-compare-sum", accuracy(), 1.1),
        ]
