"""Our own step, over micro-batches and processes, against the whole batch at once."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from wholebatch.core import tree
from wholebatch.core.device import device_of
from wholebatch.core.errors import InputTypeError, PromiseWarning, WrongStepError
from wholebatch.core.processes import Alone, Processes
from wholebatch.step import Step, losses
from wholebatch.step.group_place import Place
from wholebatch.verifying.bitwise import verify_bitwise
from wholebatch.verifying.blame import coupling, mean_reduced
from wholebatch.verifying.borrow import keep_still, no_dropout, random_state_kept
from wholebatch.verifying.exact import Vector, difference, inner, norm
from wholebatch.verifying.in_turn import Rank, in_turn
from wholebatch.verifying.read_twice import is_source, read_twice
from wholebatch.verifying.result import Case, StepCheck
from wholebatch.verifying.variants import fresh
from wholebatch.verifying.watch import dense

_PROMISED = {torch.float64: 1e-12, torch.float32: 1e-5}  # of the gradient's norm; half precision: 1e-2
_HALF = 1e-2
_SINGLE_FROM = 64  # samples above which micro-batches of one are left out, being slow


def verify(
    model: nn.Module,
    loss: Any,
    batch: Any,
    *,
    micro_batches: Sequence[int] | None = None,
    processes: Sequence[int] = (2, 3),
    bitwise: bool = False,
    strict: bool = False,
    show: bool = True,
) -> StepCheck:
    """Compare the step of :class:`wholebatch.Step` over micro-batch sizes and process counts with the whole batch's.

    A copy of the model in float64 (its own dtype if it insists) makes one step over ``batch``: at once, in
    micro-batches, and shared among several ranks with uneven parts. The ranks run one after the other in this
    process, their sums handed over in memory. The gradients must be the same within what :class:`Step` promises.
    The step at once is also compared with torch's own backward, for which dropout is off and batch norm frozen.
    Where a case is wrong, the layer or the loss that is the cause is named. Everything is left as it was.

    Args:
        model: in the mode in which it is trained.
        loss: as :class:`wholebatch.Step` takes it.
        batch: a whole batch; or a data set or loader, whose first batch is taken, and read twice to see that it is the
            same.
        micro_batches: the sizes to try; None tries some that cut the batch unevenly.
        processes: the numbers of processes to try.
        bitwise: take a few steps in bitwise mode instead, in micro-batches of the first size, on one rank and on those
            ``processes``, and compare every bit of the weights (:class:`wholebatch.verifying.DigestCheck`).
        strict: raise where a case is wrong.
        show: print the table.

    >>> model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    >>> verify(model, nn.CrossEntropyLoss(), (torch.randn(9, 3), torch.arange(9) % 2), show=False).ok
    True

    Raises:
        WrongStepError: ``strict``, and a case is wrong.
        InputTypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    cases: list[Case] = []
    with random_state_kept():
        if is_source(batch):
            batch, case = read_twice(batch)
            cases.append(case)
        samples = tree.count(batch)
        if bitwise:
            size = usual_bitwise(samples) if micro_batches is None else micro_batches[0]
            return _told(verify_bitwise(model, loss, batch, size, processes, cases), show, strict)
        runs = _Runs(model, loss, batch, samples)
        sizes = runs.sizes() if micro_batches is None else list(micro_batches)
        cases += runs.cases(sizes, [count for count in processes if count > 1])
    check = StepCheck(cases, f"one step over {samples} samples, on a copy in {runs.dtype_name()}")
    return _told(check, show, strict)


def _told(check: StepCheck, show: bool, strict: bool) -> StepCheck:
    if show:
        check.show()
    if strict and not check.ok:
        raise WrongStepError(f"this step depends on how the batch is cut\n{check}")
    return check


def usual_bitwise(samples: int) -> int:
    """Return a micro-batch of which a batch has several.

    >>> usual_bitwise(10), usual_bitwise(512)
    (2, 32)
    """
    return max(1, min(32, -(-samples // 5)))


def usual_sizes(samples: int) -> list[int]:
    """Return micro-batches that cut a batch unevenly, and of one sample where there are few.

    >>> usual_sizes(10), usual_sizes(512)
    ([1, 4, 9], [32, 205, 511])
    """
    least = 1 if samples <= _SINGLE_FROM else samples // 16
    return sorted(size for size in {least, round(0.4 * samples), samples - 1} if 0 < size < samples)


class _Runs:
    """Steps of copies of one model over one batch."""

    def __init__(self, model: nn.Module, loss: Any, batch: Any, samples: int) -> None:
        self._given, self._loss, self._samples = model, loss, samples
        self._batch_given = batch
        self._dtype: torch.dtype | None = torch.float64
        norms = Place(model, Alone())
        self._whole, self._align = norms.whole() is not None, norms.align  # what grouped batch norms allow

    def sizes(self) -> list[int]:
        """Micro-batches that cut the batch unevenly, where it may be cut."""
        if self._whole:
            return []
        aligned = {self._aligned(size) for size in usual_sizes(self._samples)}
        return sorted(size for size in aligned if size < self._samples)

    def _aligned(self, number: int) -> int:
        return max(self._align, number // self._align * self._align)

    def dtype_name(self) -> str:
        """The dtype in which the copies were."""
        own = next((p.dtype for p in self._given.parameters() if p.is_floating_point()), torch.float64)
        return str(self._dtype or own).removeprefix("torch.")

    def cases(self, sizes: Sequence[int], processes: Sequence[int]) -> list[Case]:
        """Every case; where the loss reduces by itself, that alone."""
        reduced = self._mean_reduced()
        if reduced and "bare scalar" in reduced:
            return [Case("the loss", math.inf, math.nan, False, reduced)]
        try:
            whole, _ = self._step(self._samples)
        except Exception:
            if self._dtype is None:
                raise
            self._dtype = None  # the model or the loss insists on the dtype it has
            whole, _ = self._step(self._samples)
        found = [self._against_backward()]
        for size in sizes:
            found.append(self._compared(f"micro-batches of {size}", whole, partial(self._step, size)))
        for count in processes:
            if count <= self._samples and not self._whole:  # which meet in every layer: they cannot run in turn
                found.append(self._compared(f"{count} processes (in turn)", whole, partial(self._shared, count)))
        return found

    def _compared(self, name: str, whole: Vector, run: Callable[[], tuple[Vector, list[str]]]) -> Case:
        """The case of one way to cut; a cut that raises, where the whole batch did not, is wrong."""
        try:
            found, said = run()
        except Exception as error:
            reason = " ".join(str(error).split())[:120]
            return Case(name, math.inf, math.nan, False, f"{self._cause([])} ({type(error).__name__}: {reason})")
        return self._case(name, whole, found, said)

    def _mean_reduced(self) -> str:
        model, loss, batch = self._copies()
        keep_still(model)
        try:
            with no_dropout():
                return mean_reduced(model, loss, batch)
        except Exception:
            if self._dtype is None:
                raise
            self._dtype = None
            return self._mean_reduced()

    def _copies(self) -> tuple[nn.Module, Any, Any]:
        model, loss = copy.deepcopy(self._given), self._loss
        if isinstance(loss, nn.Module):
            loss = copy.deepcopy(loss)
        for module in (model, loss):
            if isinstance(module, nn.Module) and self._dtype is not None:
                module.to(self._dtype)
        device = device_of(model)
        return model, loss, tree.to_device(fresh([self._batch_given], self._dtype)[0], device)

    def _step(self, size: int) -> tuple[Vector, list[str]]:
        model, loss, batch = self._copies()
        with _promises() as said:
            gradient = _stepped(model, loss, batch, size, Alone())
        return gradient, said

    def _shared(self, count: int) -> tuple[Vector, list[str]]:
        """Uneven parts, the first the largest, each in micro-batches."""
        samples = self._samples
        cuts = (samples - samples * (count - rank) // (count + 1) for rank in range(1, count))
        edges = [0, *(min(samples, self._aligned(cut)) for cut in cuts), samples]

        def work(rank: Rank) -> Vector:
            model, loss, batch = self._copies()
            start, stop = edges[rank.rank], edges[rank.rank + 1]
            part = tree.cut(batch, start, stop, self._samples)
            return _stepped(model, loss, part, self._aligned(max(1, (stop - start + 1) // 2)), rank)

        with _promises() as said:  # around all ranks: what warnings do is global to the process
            gradient = in_turn(count, work)[0]
        return gradient, said

    def _against_backward(self) -> Case:
        """The whole batch at once, against torch's own reduction and backward."""
        model, loss, batch = self._copies()
        keep_still(model)
        with no_dropout(), _promises() as said:
            ours = _stepped(model, loss, batch, self._samples, Alone())
            parameters = _parameters(model, loss)
            for parameter in parameters:
                parameter.grad = None
            _plain_loss(model, loss, batch).backward()
        theirs = [torch.zeros_like(p, dtype=torch.float64) if p.grad is None else dense(p.grad) for p in parameters]
        return self._case("at once, against torch's backward", theirs, ours, said)

    def _case(self, name: str, whole: Vector, found: Vector, said: list[str]) -> Case:
        size = norm(whole)
        error = difference(found, whole) / size if size else (math.inf if norm(found) else 0.0)
        error = error if math.isfinite(error) else math.inf
        factor = inner(found, whole) / size**2 if size and math.isfinite(error) else (math.nan if error else 1.0)
        seen = getattr(torch, self.dtype_name())
        ok = error <= _PROMISED.get(seen, _HALF)
        return Case(name, error, factor, ok, "" if ok else self._cause(said))

    def _cause(self, said: list[str]) -> str:
        """What the step itself said; else what the loss does; else the layer where samples meet."""
        if said:
            return "; ".join(said)
        reduced = self._mean_reduced()
        if reduced:
            return reduced
        model, loss, batch = self._copies()
        return coupling(model, loss, batch)


@contextmanager
def _promises() -> Iterator[list[str]]:
    """What steps warned of that breaks the promise; complete when the context has ended."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, PromiseWarning))


def _stepped(model: nn.Module, loss: Any, batch: Any, micro_batch: int, group: Processes) -> Vector:
    """The gradient of one step."""
    parameters = _parameters(model, loss)
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    Step(model, SGD(held, lr=0.0), loss, micro_batch=max(1, micro_batch), group=group)(batch)
    return [torch.zeros_like(p, dtype=torch.float64) if p.grad is None else dense(p.grad) for p in parameters]


def _parameters(model: nn.Module, loss: Any) -> list[Tensor]:
    modules = [model, loss] if isinstance(loss, nn.Module) else [model]
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def _plain_loss(model: nn.Module, loss: Any, batch: Any) -> Tensor:
    """The loss of the whole batch as torch itself gives it; the weighted mean of what another loss gives."""
    bound = losses.bind(loss)
    output = bound.forward(model, batch)
    if isinstance(bound, losses.TorchLoss):
        value: Tensor = loss(*losses.arguments_of(output, batch))
        return value if value.ndim == 0 else value.mean()
    loss_sum, weight = losses.weighted_sum(
        output if bound.module is None else bound.module(*losses.arguments_of(output, batch))
    )
    return loss_sum / weight
