"""DistributedDataParallel as an engine: gradients travel while the window's last backward is under way.

What is wrapped is no model but its parameters: a module whose forward gives back the sum of the losses that it is
given. So the user's model stays the user's, may be called in any way and any number of times, and its state has no
prefix. Beside the parameters it holds two scalars that belong to nobody. Every sum hangs on the *anchor*, with a
factor of 0: a process without samples runs backward on the anchor alone, and so takes part in every collective
without a forward. The *spare* is never used: without an unused parameter DistributedDataParallel would warn
that looking for some is in vain, and whether there are any is not known before.

The communication hook sums, where DistributedDataParallel by itself would average, and notes which parameters this
process has a gradient for. ``static_graph`` is not used: it fails where the first backward is not to be summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from wholebatch.core.errors import InputError
from wholebatch.core.processes import Pending, Processes
from wholebatch.step.engine import Flat
from wholebatch.step.over_processes import Totals, add_totals
from wholebatch.step.precision import is_half
from wholebatch.step.report import gradients_of, norm_of

# The parameters' gradients travel in buckets of this size.
BUCKET_MB = 8

_SPARSE = (
    "{} gives sparse gradients, which DistributedDataParallel does not sum here; use parallel='flat', or sparse=False"
)
_OUTSIDE = (
    "a backward outside of this step has used a parameter that the step itself does not use, which "
    "DistributedDataParallel cannot tell apart; give that backward a copy of the model, or use parallel='flat'"
)
_INSIDE = (
    "a parameter is used inside of backward, where DistributedDataParallel does not look (activation checkpointing "
    "with use_reentrant=True does so); use checkpoint(…, use_reentrant=False), or parallel='flat'"
)


class DdpEngine:
    """Sums gradients over processes by DistributedDataParallel (:class:`wholebatch.step.engine.Engine`)."""

    overlaps = True
    world: Processes | None = None
    lockstep = False
    stands_in = False

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self._model: nn.Module | None = None
        self._parameters: Sequence[Tensor] = ()
        self._wrapper: Any = None  # the DistributedDataParallel
        self._wrapped: list[tuple[Tensor, torch.dtype, torch.device]] = []
        self._exchange = _Exchange(processes)
        self._flat: Flat | None = None

    def begin(self, parameters: Sequence[Tensor], model: nn.Module) -> None:
        """Start a window; wrap anew where other parameters are trained than before.

        Raises:
            InputError: a layer of ``model`` gives sparse gradients.
        """
        self._parameters, self._model = parameters, model
        # Gradients of half precision are float32, which DistributedDataParallel does not sum: they travel afterwards.
        self._flat = Flat(self.processes) if any(is_half(parameter) for parameter in parameters) else None
        if self._flat is not None:
            self._flat.begin(parameters, model)
            return
        self._exchange.begin()
        trained = [(p, p.dtype, p.device) for p in parameters if p.requires_grad]
        if not _same(trained, self._wrapped):
            self._unwrap()
            sparse = next((name for name, layer in model.named_modules() if gives_sparse(layer)), None)
            if sparse is not None:
                raise InputError(_SPARSE.format(f"the layer {sparse!r}" if sparse else "the model"))
            self._wrapped = trained

    def backward(self, loss_sum: Tensor, upstream: Tensor, last: bool) -> None:
        """Run backward; with ``last`` return when ``.grad`` holds the sums over all processes.

        Raises:
            InputError: what DistributedDataParallel cannot serve: a sparse gradient, or a parameter that is used
                inside of backward.
        """
        if self._flat is not None:
            self._flat.backward(loss_sum, upstream, last)
            return
        self._wrap()
        self._exchange.measures = last and self._exchange.backwards == 0
        self._exchange.backwards += 1
        if not last:
            with self._wrapper.no_sync():
                torch.autograd.backward((self._wrapper(loss_sum),), (upstream,))
            return
        try:
            torch.autograd.backward((self._wrapper(loss_sum),), (upstream,))
        except RuntimeError as error:
            if "mark a variable ready only once" in str(error):
                raise InputError(_INSIDE) from error
            if "Sparse" in str(error):
                raise InputError(_SPARSE.format("a parameter")) from error
            if "gradient which is undefined" in str(error):
                raise InputError(_OUTSIDE) from error
            raise
        self._exchange.summed = True

    def own_norm(self) -> Tensor | None:
        """Measure ``.grad`` before it is summed; the hook has done so where the first micro-batch is the last one."""
        if not self._exchange.summed:
            return norm_of(gradients_of(self._parameters))
        norms = self._exchange.norms
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else None

    def finish(self, own: Totals, error: BaseException | None) -> Totals:
        """Take part in what this process has left out; sum the totals; forget gradients that nobody has."""
        if self._flat is not None:
            return self._flat.finish(own, error)
        self._wrap()
        if not self._exchange.summed and error is not None:
            self._stand_in()
        elif not self._exchange.summed:
            self._take_part()
        present = self._exchange.present - self._exchange.absent
        kinds = ["dense" if id(parameter) in present else "none" for parameter in self._parameters]
        whole, kinds = add_totals(self.processes, own, kinds, error)
        for parameter, kind in zip(self._parameters, kinds, strict=True):
            if kind == "none":
                parameter.grad = None
        return whole

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: the wrapper stays with the original."""
        return {**vars(self), "_wrapper": None, "_exchange": _Exchange(self.processes)}

    def _wrap(self) -> None:
        if self._wrapper is not None:
            return
        assert self._model is not None
        order = {id(parameter): number for number, parameter in enumerate(self._model.parameters())}
        trained = [parameter for parameter, *_ in self._wrapped]
        trained.sort(key=lambda parameter: order.get(id(parameter), len(order)))  # those of the loss come last
        self._wrapper = DistributedDataParallel(
            _Anchored(trained),
            process_group=self.processes.group,
            init_sync=False,  # all started alike, see same_start
            bucket_cap_mb=BUCKET_MB,
            find_unused_parameters=True,
            gradient_as_bucket_view=True,
        )
        self._wrapper.register_comm_hook(self._exchange, _sum)

    def _unwrap(self) -> None:
        """Take the hooks off the parameters, which is what the end of the reducer does."""
        if self._wrapper is not None:
            self._wrapper.reducer = self._wrapper.logger = None
        self._wrapper, self._wrapped = None, []

    def _take_part(self) -> None:
        """Sum what there is, by a backward on the anchor alone; a parameter without a gradient gives zeros."""
        for parameter, *_ in self._wrapped:
            if parameter.grad is None:
                self._exchange.absent.add(id(parameter))
                parameter.grad = torch.zeros_like(parameter)
        zero = torch.zeros_like(self._wrapper.module.anchor.detach())
        self.backward(zero, zero, last=True)

    def _stand_in(self) -> None:
        """Give zeros to the collectives that the others wait for, when this process has failed before or within them.

        They are the buckets, in their order, and the map of used parameters that follows the last of them.
        """
        reducer, under_way = self._wrapper.reducer, self._exchange.under_way
        buckets = [bucket.buffer() for bucket in reducer._get_zeros_like_grad_buckets()]
        begun = len(under_way)
        missing = [*buckets[begun:], reducer._get_local_used_map().zero_()] if begun < len(buckets) else []
        for pending in [*under_way, *map(self.processes.begin_sum_, missing)]:
            pending.wait()
        wrapped = self._wrapped
        del reducer
        self._unwrap()  # what it has begun it can never finish
        self._wrapped = wrapped


class _Exchange:
    """What is known of the window that is under way; the hook writes it, and so it knows nothing of the wrapper."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.begin()

    def begin(self) -> None:
        """Forget the window before."""
        self.summed = False
        self.absent: set[int] = set()  # ids of the parameters that got zeros for want of a gradient
        self.present: set[int] = set()  # of those that this process has a gradient for
        self.under_way: list[Pending] = []
        self.backwards = 0
        self.measures = False  # whether what is summed is the gradient of one micro-batch
        self.norms: list[Tensor] = []  # of the buckets before they are summed


def _sum(state, bucket):  # type: ignore[no-untyped-def]  # torch takes no annotations given as text
    """Begin to sum a bucket of gradients, and note whose there are."""
    state.present.update(id(parameter) for parameter in bucket.parameters() if parameter.grad is not None)
    if state.measures:
        state.norms.append(torch.linalg.vector_norm(bucket.buffer()))
    work = distributed.all_reduce(bucket.buffer(), group=state.processes.group, async_op=True)
    state.under_way.append(work)
    return work.get_future().then(lambda done: done.value()[0])


class _Anchored(nn.Module):
    """The trained parameters, and a forward that hangs a sum on the anchor."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        super().__init__()
        scalar = trained[0].detach().new_zeros(()) if trained else torch.zeros(())
        for number, parameter in enumerate(trained):
            self.register_parameter(str(number), parameter)  # type: ignore[arg-type]
        self.spare = nn.Parameter(scalar)
        self.anchor = nn.Parameter(scalar.clone())

    def forward(self, loss_sum: Tensor) -> Tensor:
        return torch.add(loss_sum, self.anchor.to(loss_sum.device), alpha=0)


def _same(some: Sequence[tuple[Any, ...]], others: Sequence[tuple[Any, ...]]) -> bool:
    """Whether these are the same tensors, of the same dtypes, in the same places."""
    return len(some) == len(others) and all(a[0] is b[0] and a[1:] == b[1:] for a, b in zip(some, others, strict=True))


def gives_sparse(layer: nn.Module) -> bool:
    """Return whether a layer is an embedding with sparse gradients."""
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse
