"""How large the micro-batches are: a number, "auto", or a budget of tokens; and smaller after memory ran out.

"auto" takes the largest micro-batch that fits by the plan into a share of the memory that is left, tries smaller ones
on the first batch, and prefers the smallest whose throughput, the adding up of its gradient included, is within 3 % of
the best: a larger one that is not faster only costs memory. What is tried changes nothing: no gradient, draw or buffer
of it stays.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import cuts, tree
from wholebatch.core.device import device_of
from wholebatch.core.errors import WholebatchError
from wholebatch.step.available import available, resident
from wholebatch.step.costs import Cost, bounds_by_cost, costs_of
from wholebatch.step.losses import LossCall
from wholebatch.step.passes import Passes
from wholebatch.step.plan import Plan, plan

SHARE = {"cpu": 0.5, "cuda": 0.8}  # of the memory that is left; others use a CPU's, too
SUSPECT = 1 / 8  # of what the limits of the system leave: a micro-batch that takes more may have run out of it
CLOSE = 0.97  # of the best throughput
EXTRA_STEPS = 3  # at most so many steps' samples are spent on trying
SMALLEST = 64  # the smallest that is tried is this part of the largest

# Batches that take less than this are not worth a plan, whose first one takes about a second.
TINY_PEAK = 16 << 20
# Nor are those worth a look whose tensors and whose model take less than this.
TINY_BATCH, TINY_MODEL = 64 << 10, 4 << 20
_FEW = 16  # samples that a plan is made with
_SAVED_TO_PEAK = 4  # times what autograd keeps is more than a step takes beside its parameters


class MicroBatchSize:
    """Where a batch is cut.

    Args:
        asked: samples of a micro-batch, or "auto".
        tokens: what a micro-batch may cost, in place of ``asked``.
        cost: what each sample costs; its tokens, if none.
        exactly: cut at multiples of ``asked`` whatever is left, even one sample.
    """

    def __init__(self, asked: int | str, tokens: int | None, cost: Cost | None, exactly: bool = False) -> None:
        self.exactly = exactly
        self.asked, self.tokens, self._cost = asked, tokens, cost
        self.limit: int | None = asked if isinstance(asked, int) else None
        self.chosen: dict[Any, tuple[int, int]] = {}  # by shape: the size, and the samples that it was chosen for
        self.most = 0  # of this window: the largest micro-batch in samples or in tokens
        self.widest = 0  # of this window: the largest in samples, without a rest of one that joined it

    @property
    def automatic(self) -> bool:
        """Whether the size is to be found."""
        return self.asked == "auto" and self.tokens is None

    @property
    def unit(self) -> str:
        """What a size counts."""
        return "samples" if self.tokens is None else "tokens"

    def shrink(self, smaller: int) -> bool:
        """Take smaller ones from now on; return whether they are smaller."""
        if self.tokens is None:
            self.limit = smaller
            return True
        before, self.tokens = self.tokens, max(1, min(smaller, self.tokens // 2))
        return self.tokens < before

    def choose(self, batch: Any, samples: int, limit: int | None) -> None:
        """Remember the micro-batch for such a batch; ``limit`` is None, or all of them, where none was found."""
        seen = samples if limit is None or limit == samples else max(samples, limit + 1)
        self.chosen[shape_of(batch)] = samples if limit is None else limit, seen

    def known(self, batch: Any, samples: int) -> bool:
        """Whether the size for such a batch was chosen already."""
        size, seen = self.chosen.get(shape_of(batch), (0, 0))
        return 0 < size < seen or 0 < samples <= seen

    def of(self, batch: Any, samples: int, align: int = 1) -> int:
        """The largest micro-batch of such a batch, in samples: a multiple of ``align``, but where a user said so."""
        found = [samples] if self.limit is None else [samples, self.limit]
        if self.automatic and (chosen := self.chosen.get(shape_of(batch))) is not None:
            found.append(chosen[0])
        size = min(found)
        return size if size in (samples, self.asked) else min(samples, aligned(size, align))

    def cuts(
        self, batch: Any, samples: int, avoid_single: bool, ignore_index: int | None, align: int = 1
    ) -> list[tuple[int, int]]:
        """Where a batch of ``samples`` is cut, at multiples of ``align``."""
        if self.tokens is not None:
            costs = costs_of(batch, samples, self._cost, ignore_index)
            found = bounds_by_cost(costs, self.tokens, align)
            self.most = max([self.most, *(int(sum(costs[start:stop])) for start, stop in found)])
            wide = (stop - start for start, stop in found)
            self.widest = max([self.widest, *(size - (align > 1 and size % align == 1) for size in wide)])
            return found
        size = self.of(batch, samples, align)
        self.most = self.widest = max(self.most, size)
        avoid_single = avoid_single and not self.exactly
        return [(0, samples)] if samples == size else cuts.bounds(samples, size, avoid_single, align)


def aligned(size: int, align: int) -> int:
    """Return the largest multiple of ``align`` up to ``size``, or ``align``.

    >>> aligned(50, 8), aligned(3, 8), aligned(0, 1)
    (48, 8, 1)
    """
    return max(1, size // align) * align


def shape_of(batch: Any) -> Any:
    """Return what tells batches apart but for the number of samples: shapes and dtypes of a sample's tensors.

    >>> shape_of((torch.zeros(5, 3), torch.zeros(5))) == shape_of((torch.zeros(2, 3), torch.zeros(2)))
    True
    """
    if type(batch) is tuple and all(isinstance(part, Tensor) and part.ndim for part in batch):
        return tuple([(part.shape[1:], part.dtype) for part in batch])
    found: list[Any] = []
    tree.map_tensors(lambda tensor: found.append((tensor.shape[1:], tensor.dtype)), batch)
    return tuple(found)


class Finder:
    """Finds the micro-batch for "auto".

    Args:
        model: a plan of it is made.
        optimizer: its state takes memory, too.
        loss: of the step.
        passes: runs a micro-batch that leaves nothing behind.
        precision: of the step.
        axis: the samples'.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, loss: LossCall, passes: Passes, precision: str, axis: tree.Axis
    ) -> None:
        self._model, self._optimizer, self._loss, self._passes = model, optimizer, loss, passes
        self._precision, self._axis = precision, axis
        self._device = device_of(model)
        self._least = 2 if passes.promise.batch_norms else 1

    def find(self, batch: Any, samples: int, measure: bool) -> int:
        """Return the micro-batch for ``samples`` samples that are like those of ``batch``, all of them or some."""
        if self._passes.norms.whole() is not None:  # it cannot be cut
            return samples
        found, align = self._find(batch, samples, measure), self._passes.norms.align
        return samples if found >= samples else min(samples, aligned(found, align))

    def _find(self, batch: Any, samples: int, measure: bool) -> int:
        given = tree.count(batch, self._axis)
        if samples < 2 or given < 2 or self._tiny(batch, samples, given):
            return samples
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the step itself says what there is to say
            try:
                if self._little(batch, samples):
                    return samples
                planned = self._plan(batch, given)
            except (torch.OutOfMemoryError, MemoryError):
                planned = None
            except Exception:  # what is wrong with the batch the step says better
                return samples
            room = self._room()
            if planned is not None and planned.peak(samples) <= TINY_PEAK:
                return samples
            limit = samples if planned is None or room is None else self._largest(planned, room + self._held(), samples)
            # batch norm sees the micro-batch: a smaller one that is as fast is another model
            measure = measure and limit > 1 and not (planned is not None and self._passes.promise.batch_norms)
            return self._measured(batch, given, limit, samples, planned) if measure else limit

    def too_large(self, batch: Any, samples: int, left: int | None) -> bool:
        """Whether a micro-batch takes, by the plan, a good part of what the system's limits ``left``.

        A plan knows nothing of kernels' own buffers and of holes between what is allocated. Where it was no memory that
        was short, smaller micro-batches come to the same error, which is then told as it is.
        """
        if left is None or self._device.type != "cpu":
            return False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                planned = self._plan(batch, tree.count(batch, self._axis))
                return planned is not None and planned.peak(samples) - self._held() >= left * SUSPECT
        except Exception:
            return False

    def _tiny(self, batch: Any, samples: int, given: int) -> bool:
        size = sum(array.nbytes for _, array, _ in tree.arrays(batch, self._axis)) / given * samples
        return size <= TINY_BATCH and sum(p.nbytes for p in self._model.parameters()) <= TINY_MODEL

    def _little(self, batch: Any, samples: int) -> bool:
        """Whether what autograd keeps of two samples says that all of them take next to nothing."""
        kept = self._passes.kept_bytes(self._cut(batch, 2), 2)
        return kept / 2 * samples * _SAVED_TO_PEAK <= TINY_PEAK

    def _plan(self, batch: Any, given: int) -> Plan | None:
        if self._axis != 0:
            return None
        precision = "fp32" if self._precision == "bf16-true" else self._precision  # the model is bfloat16 by then
        try:
            few = self._cut(batch, min(given, _FEW))
            return plan(self._model, few, self._optimizer, precision, loss=self._loss)
        except WholebatchError:
            return None

    def _room(self) -> int | None:
        """The bytes that a step may take beside what is there already."""
        left = available(self._device)
        return None if left is None else int(left * SHARE.get(self._device.type, SHARE["cpu"]))

    def _held(self) -> int:
        """Bytes of parameters, buffers, gradients and the optimizer's state that exist already."""
        tensors = [*self._model.parameters(), *self._model.buffers()]
        tensors += [p.grad for p in self._model.parameters() if p.grad is not None]
        tree.map_tensors(tensors.append, [list(state.values()) for state in self._optimizer.state.values()])
        return sum(tensor.nbytes for tensor in tensors if not tensor.is_sparse)

    def _largest(self, planned: Plan, room: int, samples: int) -> int:
        if planned.peak(samples) <= room:
            return samples
        try:
            return max(self._least, min(samples, planned.largest(max(1, room))))
        except WholebatchError:  # of two samples and less, where batch norm cannot be planned
            return self._least

    def _measured(self, batch: Any, given: int, limit: int, samples: int, planned: Plan | None) -> int:
        fits = None if planned is not None else _Growth(self._device, self._room()).fits

        def seconds(size: int) -> float:
            piece = self._cut(batch, size) if size <= given else _repeated(batch, given, size)
            self._wait()
            begun = time.perf_counter()
            self._passes.rehearse(piece, size, adds=size < samples)
            self._wait()
            return time.perf_counter() - begun

        try:
            return prefer(seconds, limit, EXTRA_STEPS * samples, fits, self._least)
        except Exception:  # autograd.grad is not for every model, and what is wrong with one the step says better
            return limit if planned is not None else samples

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _cut(self, batch: Any, size: int) -> Any:
        return tree.cut(batch, 0, size, tree.count(batch, self._axis), self._axis)


def prefer(
    seconds: Callable[[int], float],
    limit: int,
    budget: int,
    fits: Callable[[int], bool] | None = None,
    least: int = 1,
) -> int:
    """Return the smallest micro-batch up to ``limit`` whose throughput is within 3 % of the best that is seen.

    Sizes are tried downward, the largest twice since the first time is not like those after it, until one is slower or
    ``budget`` samples are spent. Small ones take too short a time to be measured well, and are not come to by chance.

    Args:
        seconds: how long a micro-batch of a size takes.
        limit: the largest size.
        budget: of samples, over all that is tried.
        fits: whether a size may be tried; no larger one is, where not. Sizes are tried upward first, then.
        least: the smallest size.
    """
    sizes = sorted({max(least, limit * part // SMALLEST) for part in (1, 2, 4, 8, 16, 32, 64)})
    rates: dict[int, float] = {}
    spent = 0

    def runs(size: int) -> bool:
        nonlocal spent
        if spent + size > budget:
            return False
        spent += size
        try:
            rates[size] = max(rates.get(size, 0.0), size / max(seconds(size), 1e-9))
        except (torch.OutOfMemoryError, MemoryError):
            return False
        return True

    if fits is not None:
        climbed = list(itertools.takewhile(lambda size: fits(size) and runs(size), sizes))
        sizes = climbed or [least]
    warm = next((size for size in reversed(sizes) if size in rates or runs(size)), least)
    best, chosen = 0.0, warm
    for size in reversed([size for size in sizes if size <= warm]):
        if not runs(size) and size not in rates:
            break
        best = max(best, rates[size])
        if rates[size] < CLOSE * best:
            break
        chosen = size
    return chosen


class _Growth:
    """Bounds what is tried where nothing is planned: twice the samples take at most twice what was taken so far."""

    def __init__(self, device: torch.device, room: int | None) -> None:
        self._device, self._room = device, room
        self._before = self._now()
        self._last = 0

    def fits(self, size: int) -> bool:
        """Whether a micro-batch of this size may be tried."""
        taken, last = self._high() - self._before, self._last
        self._last = size
        return self._room is None or last == 0 or taken * size / last <= self._room

    def _now(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else resident()[0]

    def _high(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else resident()[1]


def _repeated(batch: Any, given: int, size: int) -> Any:
    whole = tree.join([batch] * -(-size // given))
    return tree.cut(whole, 0, size, tree.count(whole))
