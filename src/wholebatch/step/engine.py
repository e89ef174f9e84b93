"""How the gradients of a window are summed over the processes: what a step asks of an engine, and the flat one.

Every engine gives the same sums. The flat one of this file sums after backward; the one over
DistributedDataParallel (:mod:`wholebatch.parallel.replicate`) sums during the last backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from wholebatch.core.processes import Processes
from wholebatch.step.over_processes import Totals, begin_gradients, begin_totals, kind_of, sum_gradients
from wholebatch.step.redo import RanOut, free
from wholebatch.step.report import gradients_of, norm_of


class Engine(Protocol):
    """Runs backward, and sums what a window comes to over all processes.

    An engine serves one window at a time. ``begin`` is local, and so is ``backward`` but for the last one; every
    process calls ``finish`` once per window, whatever happened to it before.
    """

    processes: Processes
    overlaps: bool
    """Whether ``backward`` has to be told which micro-batch is the window's last one."""
    sums_alone: bool
    """Whether ``finish`` is called by one process, too, and told the loss and weight of each micro-batch."""
    world: Processes | None
    """All processes, where each holds parts of the model alone: norms and errors are theirs together then."""
    lockstep: bool
    """Whether forward and backward wait for other processes, so that all have to get there."""
    stands_in: bool
    """Whether, then, one that has fewer micro-batches has to make as many passes as the others."""

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; no parameter has a gradient. ``model`` tells the order in which they are used."""
        ...

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Add the gradient of ``loss_sum``, times ``upstream``, to ``.grad`` of the parameters."""
        ...

    def own_norm(self) -> Tensor | None:
        """Return the norm of the gradient so far of this process alone, after its first micro-batch; local.

        None where it has been summed over the processes already without having been measured.
        """
        ...

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Return the totals of all processes, when ``.grad`` holds the sums over all processes, undivided.

        A parameter that no process has a gradient for keeps none.

        Raises:
            PeerError: another process failed; this one's own ``error`` is raised where it has one.
        """
        ...


@runtime_checkable
class HasStages(Protocol):
    """What an engine has besides, where every process has some stages of the model only."""

    samples: Processes
    """Those that share a batch's samples, one of each pipeline."""

    def passes(self, *arguments: Any, **options: Any) -> Any:
        """Return what runs the micro-batches of a step, in place of :class:`wholebatch.step.passes.Passes`."""
        ...

    def agree(self, gradients: Sequence[Tensor], finite: bool) -> tuple[Tensor, bool]:
        """Return the norm of the gradients of all stages, and whether all are finite; all processes call it."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """Within it every process has the whole model and the optimizer's whole state; all processes call it."""
        ...

    def gather(self) -> None:
        """Give every process the same until the next step; all processes call it."""
        ...

    def share_buffers(self) -> None:
        """Make every stage's buffers those of the first process that has them; all processes call it."""
        ...


class Flat:
    """Backward is local; then totals and flags travel in one buffer, and the gradients in buckets, at once.

    Which gradients there are is known when the flags have come. Not to wait for them, a window begins with those that
    there were in the window before, on any process; what turns out to be otherwise is mended afterwards. A process
    that failed takes part with whatever it has.
    """

    overlaps = False
    sums_alone = False
    world: Processes | None = None
    lockstep = False
    stands_in = False

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._parameters: Sequence[Tensor] = ()
        self._before: Sequence[str] = ()  # of what kind the gradients of the last window were, over all processes

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Keep the parameters."""
        self._parameters = parameters

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Run backward; nothing travels."""
        torch.autograd.backward((loss_sum,), (upstream,))

    def own_norm(self) -> Tensor | None:
        """Measure ``.grad``."""
        return norm_of(gradients_of(self._parameters))

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Sum the totals and the gradients."""
        parameters = self._parameters
        expected = self._before if len(self._before) == len(parameters) else ["none"] * len(parameters)
        if isinstance(error, RanOut):
            free()  # what takes part in the place of gradients that are missing needs room
        totals = begin_totals(self.processes, own, [kind_of(parameter.grad) for parameter in parameters], error)
        gradients = begin_gradients(self.processes, parameters, expected)
        try:
            whole, kinds = totals()
        except BaseException:
            with suppress(RuntimeError):  # what torch says of a process that is lost the totals have said
                gradients()  # so that nothing is under way any more when an error is seen
            raise
        sums = gradients()
        rest: list[tuple[Tensor, str]] = []
        for parameter, kind, total in zip(parameters, kinds, sums, strict=True):
            if kind == "dense" and total is not None:
                parameter.grad = total
            elif kind != "none":
                rest.append((parameter, kind))
        sum_gradients(self.processes, [parameter for parameter, _ in rest], [kind for _, kind in rest])
        self._before = kinds
        return whole
