"""A model lent to somebody's loop: its weights are replaced by copies, and everything is put back in the end.

The loop is given a copy of the module that shares the parameter *objects* with the original, while these hold
copies of the weights. So an optimizer that the loop makes for the model it is given works, and so does one that
was made before, for the original.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch.step.draws import NAMES, OFF

# Layers that draw or that normalise over the batch: they stay in evaluation mode whatever the loop says.
_STILL = (nn.modules.batchnorm._BatchNorm, nn.RReLU, nn.modules.dropout._DropoutNd)


class Borrowed:
    """A model (and the loss, where that is a module), lent out window by window.

    ``lend`` gives a copy whose floating weights have another dtype; what the loop does to weights, gradients,
    buffers and modes is undone when the context ends.
    """

    def __init__(self, model: nn.Module, loss: Any) -> None:
        self._model = model
        self._roots = [model, loss] if isinstance(loss, nn.Module) else [model]
        self._tensors = list({id(t): t for root in self._roots for t in _tensors(root)}.values())
        self._dtypes: list[tuple[Tensor, torch.dtype]] = []
        self._buffers: list[tuple[dict[str, Any], str, torch.dtype]] = []

    @contextmanager
    def lend(self, dtype: torch.dtype | None) -> Iterator[nn.Module]:
        """Give a copy in training mode, with dropout off and batch norm frozen; ``dtype`` None keeps the model's."""
        kept = [(tensor, tensor.data, tensor.grad, tensor.requires_grad) for tensor in self._tensors]
        places = [_Place(module) for root in self._roots for module in root.modules()]
        try:
            for tensor, data, _, _ in kept:
                tensor.grad = None
                floating = dtype is not None and data.is_floating_point()
                tensor.data = data.to(dtype, copy=True) if floating else data.clone()
            self._dtypes = [(tensor, tensor.dtype) for tensor, *_ in kept]
            given = self._copy()
            roots = dict.fromkeys([*self._roots, given])
            holders = [vars(module)["_buffers"] for root in roots for module in root.modules()]
            self._buffers = [(b, name, t.dtype) for b in holders for name, t in b.items() if t is not None]
            for root in roots:
                keep_still(root)
            with no_dropout():
                yield given
        finally:
            for place in places:
                place.put_back()
            for tensor, data, gradient, requires in kept:
                tensor.grad = None
                tensor.data = data
                tensor.requires_grad_(requires)
                tensor.grad = gradient

    def restore_dtypes(self) -> None:
        """Give what is lent the dtypes back that it was lent in, where a loop changed them; the values stay."""
        for tensor, dtype in self._dtypes:
            if tensor.dtype is not dtype:
                gradient, tensor.grad = tensor.grad, None
                tensor.data = tensor.data.to(dtype)
                tensor.grad = None if gradient is None else gradient.to(dtype)
        for buffers, name, dtype in self._buffers:  # which Module.to replaces by others
            if buffers.get(name) is not None:
                buffers[name] = buffers[name].to(dtype)

    def _copy(self) -> nn.Module:
        """A copy of the module around the same parameters and buffers; the model itself where it has no copy."""
        try:
            return copy.deepcopy(self._model, {id(tensor): tensor for tensor in self._tensors})
        except (RuntimeError, TypeError, ValueError):  # a tensor that is no leaf, or an attribute that cannot be copied
            return self._model


_OWN: tuple[str, ...] = ("training", "train", "dropout")


class _Place:
    """What belongs to one module and is put back: mode, ``train``, parameters, buffers, an LSTM's dropout."""

    def __init__(self, module: nn.Module) -> None:
        own = vars(module)
        self._module = module
        self._own = {name: own[name] for name in _OWN if name in own}
        self._inner = {name: dict(own[name]) for name in ("_parameters", "_buffers")}

    def put_back(self) -> None:
        own = vars(self._module)
        own.pop("train", None)
        own.update(self._own)
        for name, entries in self._inner.items():
            own[name].clear()
            own[name].update(entries)


def _tensors(root: nn.Module) -> Iterator[Tensor]:
    yield from root.parameters()
    yield from root.buffers()


def keep_still(model: nn.Module) -> None:
    """Put the model into training mode, but for dropout and batch norm, which stay in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.dropout = 0.0  # in evaluation mode its backward is refused on CUDA
        elif isinstance(module, _STILL) or (not list(module.children()) and "drop" in type(module).__name__.lower()):
            module.training = False
            vars(module)["train"] = _Still(module)
    model.train()


class _Still:
    """In the place of ``train``: the module stays as it is."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return self._module


@contextmanager
def no_dropout() -> Iterator[None]:
    """The dropout functions of ``torch.nn.functional`` give back what they are given, inside of our own step too."""
    functions = vars(F)
    originals = {name: functions[name] for name in NAMES}
    attention = originals["scaled_dot_product_attention"]
    try:
        for name in NAMES:
            functions[name] = _as_it_is
        functions["scaled_dot_product_attention"] = _without_dropout(attention)
        yield
    finally:
        for name, original in originals.items():
            functions[name] = original


def _as_it_is(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


setattr(_as_it_is, OFF, True)


def _without_dropout(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def still(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, dropout_p: float = 0.0, *rest: Any,
              **options: Any) -> Tensor:  # fmt: skip
        return attention(query, key, value, attn_mask, 0.0, *rest, **options)

    setattr(still, OFF, True)
    return still


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give torch's, NumPy's and Python's random state back as it was."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def seed_alike() -> None:
    """Let draws that nobody turned off be the same in the exact step and in the loop, which see the same pieces."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
