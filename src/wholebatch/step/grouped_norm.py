"""Batch norm over groups of fixed size, by position in the whole batch.

Batch norm normalises whatever it is given together, so that its result depends on the micro-batch. Here the samples
``0 … g-1`` of the whole batch are one group, ``g … 2g-1`` the next, and so on (ghost batch norm: Hoffer et al. 2017,
"Train longer, generalize better"); the last group holds the rest, and a rest of one joins the group before
it. So the result depends on the group alone. The running statistics move once per step, by the mean over the
groups, weighted by their samples, of the groups' means and of their unbiased variances.

Where a micro-batch is in the whole batch a step tells (:mod:`wholebatch.step.group_place`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch.core.cuts import bounds
from wholebatch.core.errors import ConfigError, InputError, InputTypeError
from wholebatch.step.whole_norm import normalise_together

if TYPE_CHECKING:
    from wholebatch.step.group_place import Place

_BatchNorm = nn.modules.batchnorm._BatchNorm


class Moments:
    """Sums over groups, weighted by their samples: the weight, the means, the unbiased variances."""

    def __init__(self, layer: GroupedNorm) -> None:
        device = layer.running_mean.device  # type: ignore[union-attr]
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(3, layer.num_features, dtype=exact, device=device)

    def add(self, samples: int, mean: Tensor, variance: Tensor) -> None:
        """Add a group's."""
        self.sums[0] += samples
        self.sums[1].add_(mean, alpha=samples)
        self.sums[2].add_(variance, alpha=samples)

    def move(self, layer: GroupedNorm) -> None:
        """Fold the means into the running statistics of ``layer``; without samples these stay as they are."""
        if self.sums[0, 0]:
            self.move_at_once(layer)

    def move_at_once(self, layer: GroupedNorm) -> None:
        """Likewise, where it is known that there are samples: the host reads nothing."""
        weight, mean, variance = self.sums
        count, running = layer.num_batches_tracked, (layer.running_mean, layer.running_var)
        assert count is not None
        with torch.no_grad():
            count += 1
            share = 1.0 / float(count) if layer.momentum is None else layer.momentum
            for kept, value in zip(running, (mean / weight, variance / weight), strict=True):
                assert kept is not None
                kept.copy_((1 - share) * kept + share * value)


class GroupedNorm(_BatchNorm):
    """What the grouped batch norms have in common; ``group`` is None where the whole batch is one group."""

    group: int | None
    place: Place | None = None
    """Where the samples of this forward are in the whole batch; None outside of a step."""

    @property
    def moves(self) -> bool:
        """Whether a forward moves the running statistics."""
        return self.training and self.track_running_stats and self.running_mean is not None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each group of the batch by itself; in evaluation mode by the running statistics, as usual."""
        self._check_input_dim(input)
        place = self.place
        if place is not None and place.probing:
            place.seen(self, input)
            return self._by_running(input)
        if not self.training and self.running_mean is not None:
            return self._by_running(input)
        if place is None:
            moments = Moments(self) if self.moves else None
            output = self._in_groups(input, len(input), moments, None)
            if moments is not None and len(input):
                moments.move_at_once(self)
            return output
        moments = place.moments(self)
        if self.group is None and place.meeting is not None:
            output, mean, variance = normalise_together(input, self.weight, self.bias, self.eps, place.meeting)
            if moments is not None:
                moments.add(place.samples, mean, variance)
            return output
        return self._in_groups(input, place.samples, moments, place)

    def _in_groups(self, input: Tensor, samples: int, moments: Moments | None, place: Place | None) -> Tensor:
        cuts = [] if self.group is None else bounds(samples, self.group, align=self.group)
        if len(cuts) < 2:
            return self._normalise(input, samples, moments)
        times, each = (1, 1) if place is None else place.arrangement(self, input)
        if times == 1:
            pieces = [input[start * each : stop * each] for start, stop in cuts]
            sizes = [stop - start for start, stop in cuts]
            return torch.cat([self._normalise(x, n, moments) for x, n in zip(pieces, sizes, strict=True)])
        rows = input.unflatten(0, (times, samples, each))
        parts = [
            self._normalise(rows[:, start:stop].flatten(0, 2), stop - start, moments).unflatten(0, (times, -1, each))
            for start, stop in cuts
        ]
        return torch.cat(parts, 1).flatten(0, 2)

    def _normalise(self, rows: Tensor, samples: int, moments: Moments | None) -> Tensor:
        """Normalise one group; with a momentum of 1 the running statistics become the group's."""
        if not self.moves:
            return F.batch_norm(rows, None, None, self.weight, self.bias, True, 0.0, self.eps)
        mean, variance = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)  # type: ignore[arg-type]
        output = F.batch_norm(rows, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        if moments is not None:  # None where backward runs it again; what autograd keeps must be alike
            moments.add(samples, mean, variance)
        return output

    def _by_running(self, input: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if mean is None or variance is None:  # a probe; whatever looks at one sample at a time will do
            dtype = input.dtype if self.weight is None else self.weight.dtype
            mean = torch.zeros(self.num_features, dtype=dtype, device=input.device)
            variance = torch.ones_like(mean)
        return F.batch_norm(input, mean, variance, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        """Return what is printed of the layer: torch's own, and the group."""
        return f"{super().extra_repr()}, group={self.group}"


class GroupedBatchNorm1d(GroupedNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` over groups of fixed size; made by :func:`convert_batchnorm`."""


class GroupedBatchNorm2d(GroupedNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over groups of fixed size; made by :func:`convert_batchnorm`."""


class GroupedBatchNorm3d(GroupedNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` over groups of fixed size; made by :func:`convert_batchnorm`."""


class GroupedSyncBatchNorm(GroupedNorm, nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` over groups of fixed size, for any number of axes; made by :func:`convert_batchnorm`."""


_GROUPED: dict[type[nn.Module], type[GroupedNorm]] = {
    nn.BatchNorm1d: GroupedBatchNorm1d,
    nn.BatchNorm2d: GroupedBatchNorm2d,
    nn.BatchNorm3d: GroupedBatchNorm3d,
    nn.SyncBatchNorm: GroupedSyncBatchNorm,
}


def convert_batchnorm(model: nn.Module, group: int | None = 32) -> nn.Module:
    """Make every batch norm of ``model`` normalise groups of ``group`` samples, by position in the whole batch.

    A :class:`Step` then gives the same result for every micro-batch that is a multiple of the group, on any number of
    processes; it cuts batches at multiples of the group, and refuses a micro-batch that would cut through one. The
    running statistics move once per step. In evaluation mode nothing changes. Outside of a step the groups are those
    of the batch that is given, and every forward in training mode moves the running statistics.

    The layers stay the objects they are, with their parameters, buffers, names and hooks: state dicts load both ways,
    an optimizer made before goes on, and a layer used in several places stays one.

    Args:
        model: changed in place. Group, layer and instance norm look at one sample at a time and are left alone.
        group: samples of a group, 2 or more. None takes the whole batch as one group: one micro-batch per process,
            whose statistics are added over processes within each layer.

    Returns:
        The model.

    Raises:
        ConfigError: ``group`` is no such number.
        InputTypeError: ``model`` is no module.
        InputError: a batch norm that has a forward of its own, or that does not know its size yet.

    >>> convert_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), group=8)[1].group
    8
    """
    if not isinstance(model, nn.Module):
        raise InputTypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 2):
        raise ConfigError(f"group={group!r}; expected a number of samples, 2 or more, or None for the whole batch")
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, module in found:
        if type(module) not in _GROUPED and not isinstance(module, GroupedNorm):
            raise InputError(_refusal(name or "the model", module))
    for _, module in found:
        if not isinstance(module, GroupedNorm):
            module.__class__ = _GROUPED[type(module)]
        module.group = group  # type: ignore[assignment]
    return model


def sums_within(layer: nn.Module) -> bool:
    """Return whether a layer sums over processes within forward and backward."""
    return isinstance(layer, GroupedNorm) and layer.group is None


def _refusal(name: str, module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return f"{name} ({kind}) does not know its number of channels yet; run the model once, then convert it"
    return (
        f"{name} is a {kind}, a batch norm with code of its own, which cannot be converted; replace it by nn.BatchNorm "
        "and what it adds, or by group or layer norm. Nothing was changed"
    )
