"""The weights of logical workers between two rounds of local steps: held, averaged, moved on.

All workers of a round start from the same weights a, the *anchor*. At its end worker k has x_k, after samples of weight
w_k, and D = sum_k w_k (x_k - a) / sum_k w_k, a pair of sums as everything that accumulates here. Then

- average: a ← a + D, the weighted mean of the x_k;
- diloco: an outer SGD step with Nesterov momentum, whose gradient is -D: v ← momentum · v - D,
  a ← a - lr (momentum · v - D) (Douillard et al. 2023, "DiLoCo"). Buffers are averaged.

Differences are averaged, and not weights, since float32 would round the weights themselves at every round.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.processes import Pending, Processes


class Weights:
    """The anchor, and what this process's own workers have: parameters and buffers of the model and of the loss.

    Args:
        processes: who has the other workers.
        modules: the model, and the loss where it has parameters.
        own: numbers of this process's workers.
    """

    def __init__(self, processes: Processes, modules: nn.Module, own: Sequence[int]) -> None:
        named = [*modules.named_parameters(), *modules.named_buffers()]
        self.processes, self._own = processes, own
        self._live = [tensor for _, tensor in named if _averages(tensor)]
        self._counts = [tensor for _, tensor in named if not _averages(tensor)]  # integers: each worker has its own
        self._trained = sum(_averages(parameter) for parameter in modules.parameters())
        self.anchor: list[Tensor] = []
        self.momentum: list[Tensor] = []
        self.held: dict[int, list[Tensor]] = {}
        self.counts: dict[int, list[Tensor]] = {}
        self.begin()

    def begin(self) -> None:
        """All workers start from what the model has."""
        self.anchor = _copies(self._live)
        self.momentum = []
        self.held = {worker: _copies(self._live) for worker in self._own}
        self.counts = {worker: _copies(self._counts) for worker in self._own}

    @torch.no_grad()
    def load(self, worker: int) -> None:
        """Make the model what a worker has."""
        _copy(self._live, self.held[worker])
        _copy(self._counts, self.counts[worker])

    @torch.no_grad()
    def store(self, worker: int) -> None:
        """Keep what the model has as a worker's."""
        _copy(self.held[worker], self._live)
        _copy(self.counts[worker], self._counts)

    @torch.no_grad()
    def show(self, change: Sequence[Tensor]) -> None:
        """Make the model the anchor with a change; counts are the first worker's."""
        for live, anchor, moved in itertools.zip_longest(self._live, self.anchor, change):
            live.copy_(anchor if moved is None else anchor + moved)
        if 0 in self.counts:
            _copy(self._counts, self.counts[0])
        for count in self._counts:
            self.processes.copy_from_first_(count)

    @torch.no_grad()
    def begin_change(self, shares: Mapping[int, float]) -> Change:
        """Begin to add x_k - a over all workers, each times its share, and keep this process's own differences."""
        own = {worker: [x - a for x, a in zip(self.held[worker], self.anchor, strict=True)] for worker in self._own}
        total = [torch.zeros_like(anchor) for anchor in self.anchor]
        for worker, differences in own.items():
            for sum_, difference in zip(total, differences, strict=True):
                sum_.add_(difference, alpha=shares[worker])
        return Change(self.processes, total, own)

    @torch.no_grad()
    def move(self, change: Sequence[Tensor], lr: float | None, momentum: float) -> None:
        """Move the anchor: by the change itself, or with ``lr`` by an outer Nesterov step."""
        if lr is None:
            for anchor, moved in zip(self.anchor, change, strict=True):
                anchor += moved
            return
        trained = self._trained
        if not self.momentum:
            self.momentum = [torch.zeros_like(anchor) for anchor in self.anchor[:trained]]
        for anchor, moved, velocity in zip(self.anchor[:trained], change[:trained], self.momentum, strict=True):
            velocity.mul_(momentum).sub_(moved)
            anchor -= lr * (momentum * velocity - moved)
        for anchor, moved in zip(self.anchor[trained:], change[trained:], strict=True):
            anchor += moved

    @torch.no_grad()
    def all_from_anchor(self) -> None:
        """Every worker starts its round from the anchor."""
        for held in self.held.values():
            _copy(held, self.anchor)

    @torch.no_grad()
    def late(self, change: Sequence[Tensor], sent: Mapping[int, Sequence[Tensor]]) -> None:
        """Workers that have gone on: what each of them sent is replaced by the mean of all."""
        for worker, held in self.held.items():
            for x, moved, own in zip(held, change, sent[worker], strict=True):
                x += moved - own

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the anchor, and the own workers' weights."""
        of = state["workers"]
        self.anchor, self.momentum = self.placed(state["anchor"]), self.placed(state["momentum"])
        self.held = {worker: self.placed(of[worker]["weights"]) for worker in self._own}
        self.counts = {worker: [c.clone() for c in of[worker]["counts"]] for worker in self._own}

    def placed(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Copies of tensors like the anchor's, where the model is."""
        return [tensor.to(live.device, copy=True) for tensor, live in zip(tensors, self._live, strict=False)]

    def norm(self, change: Sequence[Tensor]) -> float:
        """The norm of a change of the parameters."""
        norms = [torch.linalg.vector_norm(moved).double() for moved in change[: self._trained]]
        return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


class Change:
    """A sum of differences that is under way, and this process's own of them."""

    def __init__(self, processes: Processes, total: list[Tensor], own: dict[int, list[Tensor]]) -> None:
        self.own = own
        self._total = total
        self._under_way: list[tuple[Pending, Tensor, list[Tensor]]] = []
        kinds: dict[Any, list[Tensor]] = {}
        for tensor in total:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for tensors in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            self._under_way.append((processes.begin_sum_(flat), flat, tensors))

    def wait(self) -> list[Tensor]:
        """Return the sum, when it is there."""
        for pending, flat, tensors in self._under_way:
            pending.wait()
            for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(part.view(tensor.shape))
        self._under_way = []
        return self._total


def _averages(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    for mine, theirs in zip(to, source, strict=True):
        mine.copy_(theirs)
