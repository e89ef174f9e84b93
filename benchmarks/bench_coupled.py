"""A loss that couples samples in micro-batches: errors and times of the known ways, and of ours.

Written by hand after what they do: GradCache (github.com/luyug/GradCache) encodes all chunks, then again with the
random state of each put back, and propagates through a float32 product; ``--accum-freq`` of open_clip encodes all
without graph, then encodes each again (with new draws) and computes the whole loss for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import one_thread, ratio
from wholebatch import Step, WholeBatchLoss

SAMPLES, MICRO_BATCH = 256, 32
Way = Callable[[nn.Module, Tensor], object]


def _model(p: float, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 256), nn.GELU(), nn.Dropout(p), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 32)]
    return nn.Sequential(*layers).to(dtype)


def contrast(z: Tensor) -> Tensor:
    """Neighbours (two views of one thing) against all others."""
    z = F.normalize(z, dim=-1)
    logits = (z @ z.T / 0.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e9)
    return F.cross_entropy(logits, torch.arange(len(z)) ^ 1)


def at_once(model: nn.Module, x: Tensor) -> None:
    contrast(model(x)).backward()


def apart(model: nn.Module, x: Tensor) -> None:
    """The usual accumulation: a loss for each micro-batch by itself."""
    for piece in x.split(MICRO_BATCH):
        (contrast(model(piece)) * len(piece) / len(x)).backward()


def gradient_cache(model: nn.Module, x: Tensor) -> None:
    states, parts = [], []
    with torch.no_grad():
        for piece in x.split(MICRO_BATCH):
            states.append(torch.get_rng_state())
            parts.append(model(piece))
    z = torch.cat(parts).requires_grad_()
    contrast(z).backward()
    assert z.grad is not None
    for piece, gradient, state in zip(x.split(MICRO_BATCH), z.grad.split(MICRO_BATCH), states, strict=True):
        with torch.random.fork_rng():
            torch.set_rng_state(state)
            again = model(piece)
        torch.dot(again.float().flatten(), gradient.float().flatten()).backward()


def accumulation_frequency(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        parts = [model(piece) for piece in x.split(MICRO_BATCH)]
    for number, piece in enumerate(x.split(MICRO_BATCH)):
        contrast(torch.cat([*parts[:number], model(piece), *parts[number + 1 :]])).backward()


def ours(micro_batch: int | str = MICRO_BATCH, seed: int = 0) -> Way:
    loss = WholeBatchLoss(lambda model, x: model(x), contrast)
    steps: dict[int, Step] = {}

    def step(model: nn.Module, x: Tensor) -> None:
        if id(model) not in steps:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
            steps[id(model)] = Step(model, optimizer, loss, micro_batch=micro_batch, seed=seed)
        steps[id(model)](x)

    return step


def _gradient(way: Way, p: float) -> Tensor:
    model = _model(p, torch.float64)
    way(model, torch.randn(SAMPLES, 64, generator=torch.Generator().manual_seed(1)).double())
    return torch.cat([q.grad.flatten() for q in model.parameters() if q.grad is not None])


def _error(way: Way, p: float, whole: Way) -> float:
    exact = _gradient(whole, p)
    return float((_gradient(way, p) - exact).norm() / exact.norm())


def _time(way: Way) -> float:
    one, other = _model(0.0, torch.float32), _model(0.0, torch.float32)
    x, least = torch.randn(SAMPLES, 64), ours()
    return ratio(lambda: way(one, x), lambda: least(other, x), 21)


def run() -> Iterator[tuple[str, float, float]]:
    """Yield claim, measured value and bar."""
    others = {"apart": apart, "gradient cache": gradient_cache, "accumulation frequency": accumulation_frequency}
    with one_thread():
        yield "error, no dropout: ours", _error(ours(), 0.0, at_once), 1e-12
        for name, way in others.items():
            yield f"error, no dropout: {name}", _error(way, 0.0, at_once), torch.inf
        yield "error, dropout 0.2, against the same masks at once: ours", _error(ours(), 0.2, ours("auto")), 1e-12
        for name, way in others.items():
            torch.manual_seed(0)
            yield f"error, dropout 0.2, against another micro-batch (16) of itself: {name}", _cut(way), torch.inf
        for name, way in others.items():
            yield f"time, {name} / ours", _time(way), torch.inf


def _cut(way: Way) -> float:
    """How far a way is from itself when the micro-batch is another one."""
    global MICRO_BATCH
    one = _gradient(way, 0.2)
    before, MICRO_BATCH = MICRO_BATCH, 16
    try:
        other = _gradient(way, 0.2)
    finally:
        MICRO_BATCH = before
    return float((one - other).norm() / one.norm())
