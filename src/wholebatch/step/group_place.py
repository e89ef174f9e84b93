"""What the grouped batch norms of a model are told of a micro-batch, and what they tell of it.

A step sets a :class:`Place` on them for as long as its window runs. They learn how many samples the micro-batch
holds, which begin at a multiple of the group; they leave the sums of their groups' statistics, which at the step's end
are added over micro-batches and processes, divided, and folded into the running statistics, once. What is run again
(recomputed layers, the second of two passes) and what only looks (probes) is not counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wholebatch.core.cuts import says_multiples
from wholebatch.core.errors import BatchError, InputError
from wholebatch.core.processes import Processes
from wholebatch.step.grouped_norm import GroupedNorm, Moments
from wholebatch.step.row_numbers import row_numbers
from wholebatch.step.whole_norm import Meeting

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Place:
    """Where a micro-batch is in the whole batch. Used as a context manager around a window.

    ``probe(first, stop)`` runs the model without gradients on these samples of the micro-batch.
    """

    def __init__(self, model: nn.Module, processes: Processes, overlaps: bool = False) -> None:
        self._overlaps = overlaps
        self._found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
        self._processes = processes
        self._layers: list[GroupedNorm] = []
        self._calls: dict[GroupedNorm, int] = {}
        self._moments: dict[GroupedNorm, list[Moments]] = {}
        self._arrangements: dict[tuple[GroupedNorm, int], int] = {}
        self._rows: dict[GroupedNorm, list[tuple[Tensor, float]]] | None = None
        self._counts = False
        self.meeting: Meeting | None = None
        self.probe: Callable[[int, int], None] | None = None
        self.probing = False
        self.samples = 0

    @property
    def layers(self) -> list[tuple[str, GroupedNorm]]:
        """The grouped layers that look at their batch now: in training mode, or without running statistics."""
        if not self._found:
            return []
        found = [(name, module) for name, module in self._found if isinstance(module, GroupedNorm)]
        return [(name, module) for name, module in found if module.training or module.running_mean is None]

    @property
    def align(self) -> int:
        """What cuts have to be multiples of: 1 where they may be anywhere."""
        return math.lcm(*(module.group for _, module in self.layers if module.group is not None))

    @property
    def any(self) -> bool:
        """Whether the model has batch norms, which may be grouped ones in some window."""
        return bool(self._found)

    def whole(self) -> str | None:
        """The name of a layer that takes the whole batch as one group; None where there is none."""
        return next((name for name, module in self.layers if module.group is None), None)

    def refuse_cut(self, size: int, samples: int) -> None:
        """Raise where a layer needs the whole batch, which is about to be cut into micro-batches of ``size``."""
        name = self.whole()
        if name is not None:
            raise BatchError(
                f"{name} normalises the whole batch as one group (group=None), so that micro_batch={size} cannot cut "
                f"the {samples} samples of this process; use micro_batch={samples} or more, or "
                "wholebatch.convert_batchnorm(model, group=32)"
            )

    # a window ------------------------------------------------------------------------------------------

    def __enter__(self) -> Place:
        self._layers = [module for _, module in self._found if isinstance(module, GroupedNorm)]
        self._moments.clear()
        together = self._processes.size > 1 and self.whole() is not None
        if together and self._overlaps:
            raise InputError(
                f"{self.whole()} sums over processes within backward (group=None), which DistributedDataParallel does "
                "at the same time; use parallel='flat', or wholebatch.convert_batchnorm(model, group=32)"
            )
        self.meeting = Meeting(self._processes) if together else None
        for layer in self._layers:
            layer.place = self
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        for layer in self._layers:
            layer.place = None
        self.probe, self._counts = None, False
        if self.meeting is not None:
            self.meeting.end(failed=error is not None)

    def check_parts(self, samples: int | None) -> None:
        """See that every process has samples where the whole batch is one group: all of them meet in each layer."""
        if self.meeting is None:
            return
        empty = [rank for rank, count in enumerate(self.meeting.counts(samples)) if not count]
        if empty:
            raise BatchError(
                f"process {empty[0]} has no samples; {self.whole()} (group=None) needs some on every process"
            )

    def stay_away(self) -> None:
        """Tell the others that this process has failed before the window began."""
        if self._processes.size > 1 and self.whole() is not None:
            Meeting(self._processes).end(failed=True)

    def forget(self) -> None:
        """Drop what was counted; the window is not applied."""
        self._moments.clear()

    def micro_batch(self, position: int | None, start: int, samples: int) -> None:
        """A micro-batch begins: ``samples`` samples, from ``start`` in this process's part, which is at ``position``.

        Raises:
            BatchError: it does not begin at a multiple of the group, or is a rest of one.
        """
        self.samples = samples
        self._calls.clear()
        if not self._layers:
            return
        if start:
            self.refuse_cut(start, start + samples)
        align = self.align
        if align == 1:
            return
        if position is None:
            raise BatchError(
                "grouped batch norm on several processes needs the samples' places in the whole batch, which this "
                "window does not tell; say how many samples it holds: MicroBatches(iterator, samples=n), or "
                "step(window, position=p)"
            )
        where = position + start
        if where % align:
            raise BatchError(
                f"a {'micro-batch' if start else 'part of the batch'} begins at sample {where}, inside of "
                f"{says_multiples(where, align)}; train and BatchLoader(…, align={align}) cut so"
            )
        if samples == 1 and where:
            raise BatchError(
                f"a {'micro-batch' if start else 'part of the batch'} holds sample {where} alone; a rest of one "
                f"belongs to the group of {align} before it, so give it with them"
            )

    @contextmanager
    def forward(self, counts: bool = True) -> Iterator[None]:
        """Within the block layers run forward, and are counted; outside of it they are run again by backward."""
        self._counts = counts
        try:
            yield
        finally:
            self._counts = False

    @contextmanager
    def only_looking(self) -> Iterator[None]:
        """Within the block every layer normalises by its running statistics, each sample by itself."""
        before, self.probing = self.probing, True
        try:
            yield
        finally:
            self.probing = before

    # what layers call ------------------------------------------------------------------------------------

    def moments(self, layer: GroupedNorm) -> Moments | None:
        """Return what this call of ``layer`` adds its groups' statistics to; None where they do not count."""
        if not self._counts or not layer.moves:
            return None
        call = self._calls[layer] = self._calls.get(layer, -1) + 1
        kept = self._moments.setdefault(layer, [])
        if call == len(kept):
            kept.append(Moments(layer))
        return kept[call]

    def seen(self, layer: GroupedNorm, x: Tensor) -> None:
        """Keep one number for each row of ``x``, where a probe asks for them."""
        if self._rows is not None:
            self._rows.setdefault(layer, []).append(row_numbers(x))

    def arrangement(self, layer: GroupedNorm, x: Tensor) -> tuple[int, int]:
        """How the rows of ``x`` are laid out: (times, each), the rows being ``times`` runs of ``each`` per sample.

        Flattened tokens are one run; two views of the samples, one behind the other, are two runs of one row.

        Raises:
            InputError: the rows are not the samples'.
        """
        rows = len(x)
        each, rest = divmod(rows, self.samples)
        if not rest and (layer, each) not in self._arrangements:
            self._probe()
        times = None if rest else self._arrangements.get((layer, each))
        if times is None:
            name = next(name for name, module in self._found if module is layer)
            raise InputError(
                f"{name} sees {rows} rows of shape {tuple(x.shape[1:])} in a micro-batch of {self.samples} samples, "
                "and which rows are whose cannot be told, so that they cannot be normalised in groups. Ways out: an "
                "input with the samples along axis 0; group or layer norm; or convert_batchnorm(model, group=None)"
            )
        return times, each // times

    def _probe(self) -> None:
        """Find the arrangements: leaving the first sample out takes its rows away."""
        assert self.probe is not None
        every, fewer = (self._look(first) for first in (0, 1))
        for layer, calls in every.items():
            for number, (rows, off) in enumerate(calls):
                others = [numbers for numbers, _ in fewer.get(layer, [])]
                each, rest = divmod(len(rows), self.samples)
                if number < len(others) and not rest and len(others[number]) == each * (self.samples - 1):
                    times = _times(rows, others[number], each, self.samples, off)
                    if self._arrangements.setdefault((layer, each), times) != times:
                        self._arrangements[layer, each] = 0
        self._arrangements = {key: times for key, times in self._arrangements.items() if times}

    def _look(self, first: int) -> dict[GroupedNorm, list[tuple[Tensor, float]]]:
        assert self.probe is not None
        self._rows = {}
        try:
            self.probe(first, self.samples)
            return self._rows
        finally:
            self._rows = None

    # the step's end ----------------------------------------------------------------------------------------

    def apply(self) -> None:
        """Fold the statistics of the whole batch into the running ones; all processes call it."""
        layers = [module for _, module in self.layers if module.running_mean is not None]
        if not layers:
            return
        if self._processes.size > 1:
            self._over_processes(layers)
        for layer in layers:
            for moments in self._moments.get(layer, []):
                moments.move(layer)
        self._moments.clear()

    def _over_processes(self, layers: Sequence[GroupedNorm]) -> None:
        own = max((len(self._moments.get(layer, [])) for layer in layers), default=0)
        calls = max(self._processes.exchange(own))
        for layer in layers:
            kept = self._moments.setdefault(layer, [])
            kept += [Moments(layer) for _ in range(calls - len(kept))]
        every = [moments for layer in layers for moments in self._moments[layer]]
        if not every:
            return
        device = every[0].sums.device
        flat = self._processes.sum_(torch.cat([moments.sums.to(device).view(-1) for moments in every]))
        for moments, sums in zip(every, flat.split([m.sums.numel() for m in every]), strict=True):
            moments.sums = sums.view(moments.sums.shape)


def _times(rows: Tensor, fewer: Tensor, each: int, samples: int, off: float) -> int:
    """How often ``each · samples`` rows run through the samples; 0 where only rounding, up to ``off``, would tell."""

    def mismatch(times: int) -> float:
        kept = rows.view(times, samples, -1)[:, 1:]
        return float((kept - fewer.view(times, samples - 1, -1)).abs().sum())

    found = sorted((mismatch(times), times) for times in range(1, each + 1) if each % times == 0)
    return 0 if len(found) > 1 and found[1][0] <= max(off, found[0][0]) else found[0][1]
