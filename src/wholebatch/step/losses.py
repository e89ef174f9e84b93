"""The loss contract: whatever a loss gives becomes the pair (weighted sum, weight).

===============================  =====================================================================
given                            read as
===============================  =====================================================================
unreduced losses, any shape      every element weighs 1
``(losses, weights)``            sum of weights · losses, and the sum of the weights
``(mean, weight)``               a scalar mean that stands for ``weight``: mean · weight, and the weight
===============================  =====================================================================

A loss of ``torch.nn`` or ``torch.nn.functional`` (also in ``functools.partial``) is called
``loss(output, *targets)`` and its own ``reduction`` understood; any other module is called alike and gives
one of the above; a plain function is called ``f(model, batch)``.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core.errors import InputTypeError, LossError
from wholebatch.step import reductions
from wholebatch.step.reductions import Divisor

_HALF = (torch.float16, torch.bfloat16)
_REPAIR = (
    'return the unreduced losses (reduction="none"), or (losses, weights), or (mean, weight) with the weight that '
    "the mean stands for"
)


class LossCall:
    """How a step calls its loss on one micro-batch."""

    module: nn.Module | None = None  # holds parameters and buffers of the loss itself, if it has any
    shows_output: bool = False  # whether ``shown`` gives what metrics can look at
    whole_weight: float | None = None  # the weight of the whole batch where it does not add over micro-batches
    coupled: bool = False  # whether it needs the whole batch at once

    def ahead(self, batch: Any) -> Divisor | None:
        """Return the weight of ``batch`` where its targets alone tell, else None."""
        return None

    def cuttable(self, batch: Any) -> Any:
        """Return ``batch`` in a form that can be cut along its samples."""
        return batch

    def forward(self, model: nn.Module, piece: Any) -> Any:
        """Run the model on a micro-batch: on the first part of ``(inputs, *targets)``."""
        return call_model(model, piece)

    def shown(self, output: Any) -> Any:
        """Return what of ``forward``'s output metrics look at, where ``shows_output``."""
        return output

    def summed(self, output: Any, piece: Any, start: int, samples: int, weigh: bool) -> tuple[Tensor, Divisor | None]:
        """Return (loss sum, weight) of the samples from ``start`` on; the weight may be None unless ``weigh``."""
        raise NotImplementedError


def bind(loss: Any) -> LossCall:
    """Return how ``loss`` is to be called.

    Raises:
        InputTypeError: it is no callable.
        LossError: a loss of torch with an unknown reduction.
    """
    if isinstance(loss, LossCall):
        return loss
    if isinstance(loss, nn.Module):
        name = reductions.name_of_module(loss)
        return ModuleLoss(loss) if name is None else TorchLoss.of_module(name, loss)
    if not callable(loss):
        raise InputTypeError(
            f"loss is a {type(loss).__name__}; give a torch.nn loss, a torch.nn.functional loss, or a function "
            "f(model, batch) that gives unreduced losses"
        )
    function, options = reductions.options_of_partial(loss)
    name = reductions.name_of_function(function)
    return FunctionLoss(loss) if name is None else TorchLoss.of_function(name, function, options, loss)


def weighted_sum(value: Any) -> tuple[Tensor, Divisor]:
    """Return (loss sum, weight) of what a loss gave.

    >>> weighted_sum((torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])))
    (tensor(5.), 4.0)

    Raises:
        LossError: a bare scalar, weights of another shape, or weights that require gradients.
    """
    if isinstance(value, Tensor):
        if value.ndim == 0:
            raise LossError(
                "the loss is a bare scalar, and what it divided by is unknown, so it cannot be summed exactly; "
                + _REPAIR
            )
        return _sum(value), value.numel()
    if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], Tensor)):
        raise LossError(f"the loss gave {_describe(value)}; {_REPAIR}")
    losses, weights = value
    if isinstance(weights, Tensor) and weights.requires_grad:
        raise LossError(
            f"the loss gave a pair whose second part, {_describe(weights)}, requires gradients, so it is no weight; "
            f"detach() it if it is one, else {_REPAIR}"
        )
    if losses.ndim == 0:
        return _mean_times_weight(losses, weights)
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        raise LossError(
            f"losses are {_describe(losses)} but their weights are {_describe(weights)}; give one weight each"
        )
    weighted = torch.where(weights != 0, losses * weights, 0)  # a loss of weight 0 may be NaN
    return _sum(weighted), reductions.read(weights.sum(dtype=torch.float64))


def _mean_times_weight(mean: Tensor, weight: Any) -> tuple[Tensor, Divisor]:
    """A mean over nothing is NaN, and so is its gradient: weight 0 must not reach backward."""
    if isinstance(weight, Tensor):
        if weight.numel() != 1:
            raise LossError(f"a scalar mean came with weights {_describe(weight)}; give the one weight it stands for")
        weight = weight.item()
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise LossError(f"a scalar mean came with {_describe(weight)}; give the number that the mean divided by")
    weight = float(weight) if not isinstance(weight, int) else weight  # numpy's too
    if weight == 0:
        return torch.zeros((), dtype=mean.dtype, device=mean.device), 0
    return (mean.float() if mean.dtype in _HALF else mean) * weight, weight


def _sum(losses: Tensor) -> Tensor:
    """The sum, in at least float32: half precision overflows and forgets."""
    return losses.sum(dtype=torch.float32) if losses.dtype in _HALF else losses.sum()


class FunctionLoss(LossCall):
    """A plain function ``f(model, batch)``."""

    def __init__(self, function: Callable[[nn.Module, Any], Any]) -> None:
        self._function = function

    def forward(self, model: nn.Module, piece: Any) -> Any:
        """Return what the function gives."""
        return self._function(model, piece)

    def summed(self, output: Any, piece: Any, start: int, samples: int, weigh: bool) -> tuple[Tensor, Divisor]:
        """Read what the function gave."""
        return weighted_sum(output)


class ModuleLoss(LossCall):
    """A module that is called ``loss(output, *targets)`` and gives unreduced losses or a pair."""

    shows_output = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def summed(self, output: Any, piece: Any, start: int, samples: int, weigh: bool) -> tuple[Tensor, Divisor]:
        """Read what the module gave."""
        assert self.module is not None
        return weighted_sum(self.module(*arguments_of(output, piece)))


class TorchLoss(LossCall):
    """A loss of torch whose ``reduction`` is understood: called for its sum, weighed as its mean would be."""

    shows_output = True

    def __init__(
        self, name: str, reduction: str, given: Any, options: Mapping[str, Any], call: Callable[..., Any]
    ) -> None:
        known = ("mean", "sum", "none", "batchmean") if name == "kl_div" else ("mean", "sum", "none")
        if reduction not in known:
            raise LossError(f"{name} with reduction={reduction!r}; expected one of {', '.join(known)}")
        self.module = given if isinstance(given, nn.Module) else None
        self._given = given
        self.whole_weight = 1 if reduction == "sum" else None
        self._name = name
        self._rule = reductions.RULES[name]
        self._reduction = reduction
        self._options = options
        self._call = call  # (reduction, per-sample options or None, arguments) -> what torch's loss gives
        self._of_classes = self._rule is reductions.RULES["cross_entropy"]  # whose weights are of classes

    @property
    def ignore_index(self) -> int | None:
        """The label that does not count, of a loss of classes that has one; None of any other loss."""
        if not self._of_classes:
            return None
        asked = self._options.get("ignore_index")
        return -100 if asked is None else int(asked)

    @classmethod
    def of_module(cls, name: str, module: nn.Module) -> TorchLoss:
        """Read a module's own reduction; it is called as it is, but for the reduction and weights of that moment."""
        own = vars(module)
        asked = own["reduction"]

        def call(reduction: str, sliced: dict[str, Tensor] | None, arguments: tuple[Any, ...]) -> Any:
            buffers = own["_buffers"]
            own["reduction"] = reduction
            if sliced is not None:
                own["_buffers"] = {**buffers, **sliced}
            try:
                return module(*arguments)
            finally:
                own["reduction"] = asked
                own["_buffers"] = buffers

        return cls(name, str(asked), module, _Attributes(module), call)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles bind anew."""
        return bind, (self._given,)

    @classmethod
    def of_function(cls, name: str, function: Callable[..., Any], options: dict[str, Any], given: Any) -> TorchLoss:
        """Read a function's keyword arguments."""
        reduction = reductions.legacy_reduction(options, function)
        options.pop("reduction", None)

        def call(reduction: str, sliced: dict[str, Tensor] | None, arguments: tuple[Any, ...]) -> Any:
            given = {**options, **sliced} if sliced else options
            return function(*arguments, reduction=reduction, **given)

        return cls(name, reduction, given, options, call)

    def cuttable(self, batch: Any) -> Any:
        """Give CTC's lengths as tensors, and its targets one row per sample where they are concatenated."""
        if self._name != "ctc_loss" or not isinstance(batch, tuple | list) or len(batch) != 4:
            return batch
        inputs, targets, *lengths = batch
        input_lengths, target_lengths = (torch.as_tensor(item) for item in lengths)
        if isinstance(targets, Tensor) and targets.ndim == 1 and int(target_lengths.sum()) == len(targets):
            rows = targets.split(target_lengths.tolist())
            targets = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        return inputs, targets, input_lengths, target_lengths

    def ahead(self, batch: Any) -> Divisor | None:
        """Return the class weight of all targets at once, where the targets are classes."""
        if self._reduction != "mean" or self._name not in ("cross_entropy", "nll_loss"):
            return None
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            return None
        targets = batch[1]
        if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.ndim == 0:
            return None
        weight = self._options.get("weight")
        if weight is not None and weight.device != targets.device:
            return None
        try:
            return reductions.class_weight(targets, self._options)
        except (IndexError, RuntimeError):  # a label without a class: the loss itself says so
            return None

    def summed(self, output: Any, piece: Any, start: int, samples: int, weigh: bool) -> tuple[Tensor, Divisor | None]:
        """Call torch's loss for its sum and count what its mean would have divided by."""
        arguments = arguments_of(output, piece)
        asked = self._asked(arguments)
        sliced = None
        if not self._of_classes:
            self._check_shapes(arguments)
            sliced = self._per_sample_options(arguments, start)
        try:
            result = self._call(asked, sliced, arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise LossError(self._diagnose(arguments, error)) from error
        if self._rule.scale is not None and self._reduction == "mean":
            result = self._rule.scale(arguments, result)
        loss_sum = _sum(result) if asked == "none" else result
        if not weigh or self.whole_weight is not None:
            return loss_sum, None
        if self._reduction == "none":
            return loss_sum, result.numel()
        if self._reduction == "batchmean":
            return loss_sum, arguments[0].shape[0]
        options = self._options if sliced is None else {"weight": None, **sliced}
        return loss_sum, self._rule.divisor(arguments, result, options)

    def _asked(self, arguments: tuple[Any, ...]) -> str:
        if not isinstance(arguments[0], Tensor):
            raise LossError(f"{self._name} needs a tensor as the model's output; got {_describe(arguments[0])}")
        if self._reduction == "none" or arguments[0].dtype in _HALF:
            return "none"
        return "sum" if self._reduction != "mean" else self._rule.reduction

    def _check_shapes(self, arguments: tuple[Any, ...]) -> None:
        first = arguments[0]
        for other in arguments[1 : self._rule.same_shape]:
            if not isinstance(other, Tensor) or other.shape != first.shape:
                raise LossError(
                    f"{self._name} got output {_describe(first)} and target {_describe(other)}; they must have one "
                    "shape, since broadcasting would compare every sample with every other one. "
                    "Reshape one of them, e.g. output.squeeze(1) or target.unsqueeze(1)"
                )

    def _per_sample_options(self, arguments: tuple[Any, ...], start: int) -> dict[str, Tensor] | None:
        """The rows of ``weight`` and ``pos_weight`` that belong to this micro-batch, where they are per sample."""
        first, sliced = arguments[0], {}
        for name in ("weight", "pos_weight"):
            option = self._options.get(name)
            if isinstance(option, Tensor) and option.ndim == first.ndim and option.shape[0] != 1:
                sliced[name] = option[start : start + first.shape[0]]
                if len(sliced[name]) != first.shape[0]:
                    raise LossError(
                        f"{self._name} has a {name} of shape {tuple(option.shape)}, one row per sample, but the batch "
                        f"has at least {start + first.shape[0]} samples"
                    )
        return sliced or None

    def _diagnose(self, arguments: tuple[Any, ...], error: Exception) -> str:
        given = f"{self._name} got output {_describe(arguments[0])}"
        given += f" and target {', '.join(_describe(item) for item in arguments[1:])}" if len(arguments) > 1 else ""
        if self._of_classes and len(arguments) > 1:
            targets = arguments[-1]
            if isinstance(targets, Tensor) and targets.dtype != torch.int64 and targets.shape != arguments[0].shape:
                return f"{given}; class numbers must be int64: convert them with targets.long()"
        return f"{given}; {str(error).strip().splitlines()[0]}"


class _Attributes(Mapping[str, Any]):
    """A module's attributes as a mapping of options."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._module, name)
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Any:
        return iter(vars(self._module))

    def __len__(self) -> int:
        return len(vars(self._module))


def call_model(model: nn.Module, piece: Any) -> Any:
    """Return the model's output for the inputs of ``(inputs, *targets)``, or for a batch that is a tensor.

    Raises:
        LossError: a batch of another kind, which only a loss function ``f(model, batch)`` can read.
    """
    if isinstance(piece, Tensor):
        return model(piece)
    if isinstance(piece, tuple | list):
        return model(piece[0])
    raise LossError(
        f"a loss called as loss(output, *targets) needs a batch (inputs, *targets); this one is {_describe(piece)}. "
        "Write the loss as a function f(model, batch) instead, or name the keys of a dict to wholebatch.train: "
        "inputs=..., targets=..."
    )


def targets_of(piece: Any) -> tuple[Any, ...]:
    """Return what follows the inputs in ``(inputs, *targets)``; nothing where the batch is not made so."""
    return tuple(piece[1:]) if isinstance(piece, tuple | list) else ()


def arguments_of(output: Any, piece: Any) -> tuple[Any, ...]:
    """Return what a loss module is called with: the output, spread where it is a tuple, then the targets."""
    outputs = tuple(output) if isinstance(output, tuple) else (output,)
    return (*outputs, *piece[1:]) if isinstance(piece, tuple | list) else outputs


def _describe(item: Any) -> str:
    if isinstance(item, Tensor):
        return f"{str(item.dtype).removeprefix('torch.')} of shape {tuple(item.shape)}"
    if isinstance(item, tuple | list):
        return f"a {type(item).__name__} of {len(item)} ({', '.join(_describe(part) for part in item[:4])})"
    return f"{type(item).__name__} {item!r:.40}"
