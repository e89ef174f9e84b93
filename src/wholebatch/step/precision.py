"""The arithmetic of a step: which precision the model computes in, and gradients that are summed in float32.

A sum of many gradients in bfloat16 stops growing when an addend is below 1/256 of it. So the gradient of a parameter of
half precision is a float32 tensor (``Tensor.grad_dtype``): backward rounds each micro-batch's to the parameter's own
precision, but adds them in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.core import tree
from wholebatch.core.errors import ConfigError, nearest

PRECISIONS = ("fp32", "tf32", "bf16", "fp16", "bf16-true")
"""fp32: the model's own dtype. tf32: float32 whose products are rounded to 10 bits, on GPUs that can. bf16, fp16:
autocast. bf16-true: parameters in bfloat16."""

_HALF = (torch.bfloat16, torch.float16)
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_NORMS = (nn.modules.batchnorm._NormBase,)  # batch and instance norm: their kernels take statistics in float32


def check_precision(precision: Any) -> None:
    """Refuse what is no precision.

    Raises:
        ConfigError: the message names those there are.
    """
    if precision not in PRECISIONS:
        hint = nearest(str(precision), PRECISIONS)
        raise ConfigError(f"precision={precision!r}; expected one of {', '.join(PRECISIONS)}{hint}")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return a new context in which a forward computes; one that is entered again while it is open never closes."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@contextmanager
def switches(precision: str) -> Iterator[None]:
    """Within the block float32 products may be rounded to tf32, where that is asked for; then it is as it was.

    It changes GPUs alone; on a CPU it has no effect.
    """
    if precision != "tf32":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    places = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "tf32"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value


def is_half(tensor: Tensor) -> bool:
    """Return whether a tensor is bfloat16 or float16."""
    return tensor.dtype in _HALF


def sum_in_float32(parameters: Iterable[Tensor]) -> None:
    """Let backward add the gradients of parameters of half precision in float32; none of them has a gradient now."""
    for parameter in parameters:
        if is_half(parameter) and parameter.requires_grad and parameter.is_leaf:
            parameter.grad_dtype = torch.float32


def step_in_own_dtype(optimizer: Optimizer) -> None:
    """Let the optimizer see gradients in the parameters' own dtype; ``.grad`` stays what it was."""
    held = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    kept = [(parameter, parameter.grad) for parameter in held if parameter.grad.dtype != parameter.dtype]
    for parameter, gradient in kept:
        _set_gradient(parameter, gradient.to(parameter.dtype))
    try:
        optimizer.step()
    finally:
        for parameter, gradient in kept:
            _set_gradient(parameter, gradient)


def _set_gradient(parameter: Tensor, gradient: Tensor) -> None:
    parameter.grad = None
    parameter.grad_dtype = gradient.dtype
    parameter.grad = gradient


def lower(model: nn.Module) -> None:
    """Make parameters and buffers of ``model`` bfloat16, in place, but those of batch and instance norm.

    It then takes inputs of any floating dtype, and gives float32.
    """
    kept = {id(t) for m in model.modules() if isinstance(m, _NORMS) for t in (*m.parameters(False), *m.buffers(False))}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.to(torch.bfloat16)
    if _inputs not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_inputs, with_kwargs=True)
        model.register_forward_hook(_outputs)


def _inputs(model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return tree.map_tensors(_to_bf16, args), tree.map_tensors(_to_bf16, kwargs)


def _outputs(model: nn.Module, args: Any, output: Any) -> Any:
    return tree.map_tensors(_to_fp32, output)


def _to_bf16(tensor: Tensor) -> Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
