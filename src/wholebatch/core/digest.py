"""A short name of a model's bits: the same one for two models if all bits of their weights and buffers are the same."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_CHUNK = 1 << 16  # elements that are multiplied with one and the same row of keys
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 32 hexadecimal digits that tell the names, shapes, dtypes and bits of ``tensors``.

    Each tensor's bits are taken as integers, multiplied with fixed odd numbers, one for every place, and added up
    modulo 2^64, on the tensor's device; one number of each tensor is read. So a single element that differs always
    shows, and several escape with a chance of about 2^-64. It does not help against somebody who means to deceive.

    Args:
        tensors: such as ``model.state_dict()``; the order does not matter, and what is no tensor is left out.

    >>> weights = {"a": torch.tensor([1.0, 2.0])}
    >>> [digest(weights) == digest({"a": torch.tensor(other)}) for other in ([1.0, 2.0], [2.0, 1.0])]
    [True, False]
    >>> digest({"a": torch.tensor(0.0)}) == digest({"a": torch.tensor(-0.0)})
    False
    """
    named = sorted((name, tensor) for name, tensor in tensors.items() if isinstance(tensor, Tensor))
    sums: dict[torch.device, list[Tensor]] = {}
    for _, tensor in named:
        sums.setdefault(tensor.device, []).append(sum_of_bits(tensor))
    read = {device: iter(torch.stack(values).tolist()) for device, values in sums.items()}
    whole = hashlib.sha256()
    for name, tensor in named:
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {next(read[tensor.device])}\n".encode())
    return whole.hexdigest()[:32]


def sum_of_bits(tensor: Tensor) -> Tensor:
    """Return one int64 on the tensor's device that tells its bits, and not its shape or dtype."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    words = flat.view(_WORDS[flat.element_size()])
    keys = _keys(tensor.device)
    whole = len(words) // _CHUNK
    found = torch.zeros((), dtype=torch.int64, device=tensor.device)
    if whole:  # row by row, so that no copy of the tensor is made in int64
        for row in range(whole):
            part = words[row * _CHUNK : (row + 1) * _CHUNK]
            found += (part * keys).sum() * (2 * row + 3)
    rest = words[whole * _CHUNK :]
    return found + (rest * keys[: len(rest)]).sum() * (2 * whole + 3)


@functools.lru_cache(maxsize=8)
def _keys(device: torch.device) -> Tensor:
    """Odd numbers that look random, the same everywhere: the finaliser of splitmix64 (Steele et al. 2014)."""
    with torch.inference_mode(False):
        found = torch.arange(1, _CHUNK + 1, dtype=torch.int64, device=device) * _signed(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            found = (found ^ _shifted(found, shift)) * _signed(factor)
        return found | 1


def _shifted(value: Tensor, bits: int) -> Tensor:
    """A logical shift to the right, which int64 does not have."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
