"""Which layer makes a sample's output depend on the other samples: the first whose rows change with the company."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from wholebatch.core import tree
from wholebatch.step import losses
from wholebatch.step.unkeyed import unchanged_buffers
from wholebatch.verifying.borrow import no_dropout, seed_alike

_NEAR = 1e-6  # rows are the same up to this, relative to the largest entry


def mean_reduced(model: nn.Module, loss: Any, batch: Any) -> str:
    """Say that the loss reduces by itself: a bare scalar, or as many elements for half of the samples; else ""."""
    bound = losses.bind(loss)
    if isinstance(bound, losses.TorchLoss):
        return ""
    samples = tree.count(batch)
    with torch.no_grad(), unchanged_buffers(model):
        value = _value(bound, model, batch)
        if isinstance(value, Tensor) and value.ndim == 0:
            return (
                f"{_named(loss)} is mean-reduced: it gives a bare scalar, so what it divided by is unknown; return the "
                'unreduced losses (reduction="none"), (losses, weights), or (mean, weight)'
            )
        half = _value(bound, model, tree.cut(batch, 0, samples // 2, samples)) if samples > 1 else value
        whole_weight, half_weight = losses.weighted_sum(value)[1], losses.weighted_sum(half)[1]
    if samples > 1 and float(whole_weight) == float(half_weight):
        return (
            f"{_named(loss)} is mean-reduced: it weighs {float(whole_weight):g} for {samples} samples and for "
            f'{samples // 2} alike; return one loss per sample (reduction="none")'
        )
    return ""


def _value(bound: losses.LossCall, model: nn.Module, batch: Any) -> Any:
    output = bound.forward(model, batch)
    return output if bound.module is None else bound.module(*losses.arguments_of(output, batch))


def _named(loss: Any) -> str:
    name = getattr(loss, "__name__", type(loss).__name__)
    if not inspect.isfunction(loss):
        return f"the loss {name}"
    return f"the loss {name} ({loss.__code__.co_filename.rpartition('/')[2]}:{loss.__code__.co_firstlineno})"


def coupling(model: nn.Module, loss: Any, batch: Any) -> str:
    """Name the layer in which samples influence each other, found by leaving half of them out; "" if none does."""
    samples = tree.count(batch)
    if samples < 2:
        return ""
    half = samples // 2
    with torch.no_grad(), unchanged_buffers(model), no_dropout():
        whole = _outputs(model, loss, batch, samples)
        part = _outputs(model, loss, tree.cut(batch, 0, half, samples), half)
    for (name, rows), (other, fewer) in zip(whole, part, strict=False):
        if name != other or rows.shape[1:] != fewer.shape[1:]:
            break
        if not _same(rows[: len(fewer)], fewer):
            return (
                f"{name} makes a sample's output depend on the other samples of its micro-batch; use a layer that "
                "looks at one sample at a time, or a micro_batch as large as the batch"
            )
    return "the loss makes samples depend on each other (no layer does)"


def _same(first: Tensor, second: Tensor) -> bool:
    if first.numel() == 0:
        return True
    scale = float(first.abs().max())
    return float((first - second).abs().max()) <= _NEAR * max(scale, 1e-30)


def _outputs(model: nn.Module, loss: Any, batch: Any, samples: int) -> list[tuple[str, Tensor]]:
    """The output of every layer without children, in the order in which they end, where it has a row per sample."""
    found: list[tuple[str, Tensor]] = []

    def keep(label: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.ndim and first.shape[0] == samples and first.is_floating_point():
                found.append((label, first.detach().double()))

        return hook

    inner = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    modules = [*inner, ("", model)] if ("", model) not in inner else inner
    handles = [
        module.register_forward_hook(keep(f"{name or 'the model'} ({type(module).__name__})"))
        for name, module in modules
    ]
    seed_alike()
    try:
        losses.bind(loss).forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
