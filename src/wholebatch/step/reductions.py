"""What the mean of each loss of ``torch.nn`` divides by, so that it can be summed and divided once.

``reduction="mean"`` divides by

=====================================  ==================================================================
elementwise losses                     the number of elements (with a ``weight`` of l1, mse or huber loss: its sum
                                       for l1 and mse loss, as torch has it)
losses of rows (margins, cosine, …)    the number of rows
``cross_entropy``, ``nll_loss``        the class weights of the targets that are not ignored, summed;
                                       with probabilities the number of positions
``kl_div`` with ``"batchmean"``        the number of samples
``ctc_loss``                           the number of samples, each loss divided by its target's length first
=====================================  ==================================================================

A rule is called with the loss's arguments (outputs, then targets) and its options, and gives the divisor
that belongs to this micro-batch: a number where the host knows it, else a tensor on the device.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction

Options = Mapping[str, Any]
Divisor = float | Tensor


class Rule(NamedTuple):
    """How one loss is summed: the reduction that is asked of torch, and the divisor of its mean."""

    reduction: str  # "sum", or "none" where the sum alone does not tell
    divisor: Callable[[tuple[Any, ...], Tensor, Options], Divisor]  # (arguments, result, options)
    same_shape: int = 0  # how many leading arguments must have one shape; 0: torch checks
    scale: Callable[[tuple[Any, ...], Tensor], Tensor] | None = None  # what the mean does to each loss first


def read(value: Tensor) -> Divisor:
    """A tensor's number where reading is free (on the CPU), else the tensor."""
    return value.item() if value.device.type == "cpu" else value


def _elements(arguments: tuple[Any, ...], result: Tensor, options: Options) -> Divisor:
    return arguments[0].numel()


def _weighted_elements(arguments: tuple[Any, ...], result: Tensor, options: Options) -> Divisor:
    weight = options.get("weight")
    return arguments[0].numel() if weight is None else read(weight.sum(dtype=torch.float64))


def _result_elements(arguments: tuple[Any, ...], result: Tensor, options: Options) -> Divisor:
    return result.numel()


def class_weight(targets: Tensor, options: Options) -> Divisor:
    """The class weights, summed, of the targets that are not ignored (each 1 where there are none)."""
    weight, ignored = options.get("weight"), options.get("ignore_index")
    ignored = -100 if ignored is None else ignored
    if targets.numel() == 0:
        return 0
    if targets.dtype is not torch.int64:  # bytes would be a mask, and -100 is 156 to them
        targets = targets.long()
    if weight is None:
        if ignored < 0 and targets.device.type == "cpu" and int(targets.min()) >= 0:
            return targets.numel()
        return read((targets != ignored).sum())
    kept = targets != ignored
    per_target = weight[torch.where(kept, targets, 0)]
    return read(torch.where(kept, per_target, 0).sum(dtype=torch.float64))


def _classes(arguments: tuple[Any, ...], result: Tensor, options: Options) -> Divisor:
    targets = arguments[-1]
    if targets.is_floating_point():  # probabilities, shaped like the logits
        return targets.numel() // targets.shape[1 if targets.ndim > 1 else 0]
    return class_weight(targets, options)


def _by_target_length(arguments: tuple[Any, ...], result: Tensor) -> Tensor:
    lengths = torch.as_tensor(arguments[3], device=result.device)
    return result / lengths.clamp(min=1).to(result.dtype)


_ELEMENT = Rule("sum", _elements, same_shape=2)
_WEIGHTED = Rule("sum", _weighted_elements, same_shape=2)
_ROW = Rule("none", _result_elements)
_CLASS = Rule("sum", _classes)

RULES: dict[str, Rule] = {
    "l1_loss": _WEIGHTED,
    "mse_loss": _WEIGHTED,
    "smooth_l1_loss": _ELEMENT,
    "huber_loss": _ELEMENT,
    "soft_margin_loss": _ELEMENT,
    "hinge_embedding_loss": _ELEMENT,
    "binary_cross_entropy": _ELEMENT,
    "binary_cross_entropy_with_logits": _ELEMENT,
    "poisson_nll_loss": _ELEMENT,
    "gaussian_nll_loss": Rule("none", _result_elements, same_shape=2),
    "kl_div": _ELEMENT,
    "margin_ranking_loss": Rule("sum", _elements, same_shape=3),
    "cosine_embedding_loss": _ROW,
    "multi_margin_loss": _ROW,
    "multilabel_margin_loss": _ROW,
    "multilabel_soft_margin_loss": _ROW,
    "triplet_margin_loss": _ROW,
    "triplet_margin_with_distance_loss": _ROW,
    "cross_entropy": _CLASS,
    "nll_loss": _CLASS,
    "linear_cross_entropy": _CLASS,
    "ctc_loss": Rule("none", _result_elements, scale=_by_target_length),
}

_MODULES = {
    "L1Loss": "l1_loss",
    "MSELoss": "mse_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "HuberLoss": "huber_loss",
    "SoftMarginLoss": "soft_margin_loss",
    "HingeEmbeddingLoss": "hinge_embedding_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "PoissonNLLLoss": "poisson_nll_loss",
    "GaussianNLLLoss": "gaussian_nll_loss",
    "KLDivLoss": "kl_div",
    "MarginRankingLoss": "margin_ranking_loss",
    "CosineEmbeddingLoss": "cosine_embedding_loss",
    "MultiMarginLoss": "multi_margin_loss",
    "MultiLabelMarginLoss": "multilabel_margin_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
    "TripletMarginLoss": "triplet_margin_loss",
    "TripletMarginWithDistanceLoss": "triplet_margin_with_distance_loss",
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "LinearCrossEntropyLoss": "linear_cross_entropy",
    "CTCLoss": "ctc_loss",
}


def name_of_module(loss: torch.nn.Module) -> str | None:
    """The functional name of a ``torch.nn`` loss module, also of a subclass that keeps ``forward``."""
    for kind, name in _MODULES.items():
        known = getattr(torch.nn, kind, None)  # LinearCrossEntropyLoss is younger than torch 2.11
        if known is not None and isinstance(loss, known) and type(loss).forward is known.forward:
            return name
    return None


def name_of_function(loss: Callable[..., Any]) -> str | None:
    """The name of a loss of ``torch.nn.functional``, or None for any other callable."""
    return next((name for name in RULES if getattr(F, name, None) is loss), None)


def options_of_partial(loss: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Unwrap ``functools.partial``: the function and all keyword arguments, the outermost last."""
    options: dict[str, Any] = {}
    while isinstance(loss, functools.partial):
        if loss.args:
            return loss, {}
        options = {**loss.keywords, **options}
        loss = loss.func
    return loss, options


def legacy_reduction(options: dict[str, Any], function: Callable[..., Any]) -> str:
    """The reduction that the options ask for, ``size_average`` and ``reduce`` of old times included."""
    average, reduce = options.pop("size_average", None), options.pop("reduce", None)
    if average is not None or reduce is not None:
        return _reduction.legacy_get_string(average, reduce, emit_warning=False)
    default = inspect.signature(function).parameters["reduction"].default
    return options.get("reduction", default)
