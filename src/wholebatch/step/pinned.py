"""What bitwise mode holds still while it computes: threads, deterministic kernels, how float32 is multiplied."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from wholebatch.core.device import device_of
from wholebatch.core.errors import ConfigError

_deterministic: Any = torch.utils.deterministic
_WORKSPACE, _FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@contextmanager
def pinned(threads: int, precision: str) -> Iterator[None]:
    """Within the block kernels are deterministic and run on ``threads`` threads; then everything is as it was.

    Float32 products are not rounded to tf32 (unless that is the ``precision``) or to bfloat16; cuDNN does not choose
    its kernels by trying them.
    """
    before = _state()
    wanted: dict[Any, Any] = {
        "threads": threads,
        "deterministic": (True, False),
        "fill": False,  # of fresh memory: costs time, and nothing here reads it
        "cudnn": (False, True),
        "products": ["ieee"] * len(_places()) if precision != "tf32" else before["products"],
    }
    _set(before, wanted)
    try:
        yield
    finally:
        _set(_state(), before)


def _places() -> list[Any]:
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    named: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn]  # type: ignore[attr-defined]
    return named + [getattr(mkldnn, name) for name in ("matmul", "conv", "rnn") if hasattr(mkldnn, name)]


def _state() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "fill": _deterministic.fill_uninitialized_memory,
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "products": [place.fp32_precision for place in _places()],
    }


def _set(now: dict[str, Any], wanted: dict[str, Any]) -> None:
    if now["threads"] != wanted["threads"]:
        torch.set_num_threads(wanted["threads"])
    if now["deterministic"] != wanted["deterministic"]:
        mode, warn_only = wanted["deterministic"]
        # torch.use_deterministic_algorithms also tells the compiler, whose import takes seconds
        torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)
    if now["fill"] != wanted["fill"]:
        _deterministic.fill_uninitialized_memory = wanted["fill"]
    if now["cudnn"] != wanted["cudnn"]:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = wanted["cudnn"]
    for place, is_now, value in zip(_places(), now["products"], wanted["products"], strict=True):
        if is_now != value:
            place.fp32_precision = value


def check_workspace(device: torch.device) -> None:
    """See that cuBLAS takes a workspace of fixed size, which it reads from the environment when it starts.

    Raises:
        ConfigError: it has started already, or the environment says something else.
    """
    if device.type != "cuda":
        return
    said = os.environ.get(_WORKSPACE)
    if said is None and not torch.cuda.is_initialized():
        os.environ[_WORKSPACE] = said = _FIXED[0]
    if said not in _FIXED:
        raise ConfigError(
            f"bitwise=True on a GPU needs {_WORKSPACE}={_FIXED[0]} in the environment before torch first uses it; "
            f"it is {said or 'not set'}"
        )


def pinned_facts(model: nn.Module, optimizer: Optimizer, micro_batch: int, threads: int) -> dict[str, Any]:
    """Return, in plain words, what the bits depend on beside code, data, seed and batch size."""
    device = device_of(model)
    kind = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    kernels = [{name: group.get(name) for name in ("foreach", "fused")} for group in optimizer.param_groups]
    return {
        "micro_batch": micro_batch,
        "threads": threads,
        "device": kind,
        "torch": str(torch.__version__),
        "optimizer": repr(kernels),
    }
