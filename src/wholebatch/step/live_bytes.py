"""Bytes that are alive while a model runs, counted without running it: fake tensors have sizes and no contents."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_CHANNELS = 16  # of one block of oneDNN's layout


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make, and forgets each when its last tensor is gone.

    ``now`` and ``peak`` are bytes. What a kernel allocates inside itself is seen only where it is known: oneDNN's
    copies of a convolution's output and weight, channels padded to blocks of
    16, and its workspace of a recurrent layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._workspaces: dict[tuple[Any, ...], float] = {}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that exist already."""
        for tensor in tensors:
            self._count(tensor, tensor.untyped_storage().nbytes())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it made."""
        outputs = func(*args, **(kwargs or {}))
        packet, inside = func.overloadpacket, 0.0
        if packet is _aten.convolution:
            inside = _blocked(outputs) + _bytes(args[1])
        elif packet is _aten.convolution_backward:
            inside = _blocked(args[0]) + _bytes(args[2])
        elif packet is _aten.mkldnn_rnn_layer:
            self._count(outputs[3], self._workspace(args))
        elif packet is _aten.mkldnn_rnn_layer_backward:
            inside = _bytes(args[1]) + _bytes(args[2])
        self.hold(tensor for tensor in tree_leaves(outputs) if isinstance(tensor, Tensor))
        self.peak = max(self.peak, self.now + int(inside))
        return outputs

    def _count(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            return
        self._alive[storage._cdata] = weakref.ref(storage, functools.partial(self._forget, storage._cdata, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, number: int, size: int, _: object) -> None:
        del self._alive[number]
        self.now -= size

    def _workspace(self, args: tuple[Any, ...]) -> int:
        """Bytes that oneDNN keeps for the backward pass of a recurrent layer.

        Its own formula is not public. It is a sum of a part for each of: nothing, time, samples, both; so that four
        tiny calls of the real kernel tell it.
        """
        time, samples, width = args[0].shape
        key = (width, *args[1].shape, *args[2].shape, args[0].dtype, str(args[7:]))
        if key not in self._workspaces:
            self._workspaces[key] = 0.0
        sizes = [[_tiny(args, t, n) for n in (8, 16)] for t in (8, 16)]
        both = (sizes[1][1] - sizes[1][0] - sizes[0][1] + sizes[0][0]) / 64
        by_time = (sizes[1][0] - sizes[0][0]) / 8 - 8 * both
        by_samples = (sizes[0][1] - sizes[0][0]) / 8 - 8 * both
        fixed = sizes[0][0] - 8 * by_time - 8 * by_samples - 64 * both
        return int(fixed + time * by_time + samples * by_samples + time * samples * both)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocked(tensor: Tensor) -> float:
    """Bytes of a convolution's output in oneDNN's blocked layout, through which it goes unless channels are last."""
    if tensor.device.type != "cpu" or tensor.ndim < 4 or tensor.is_contiguous(memory_format=torch.channels_last):
        return 0
    channels = tensor.shape[1]
    return _bytes(tensor) * (-(-channels // _CHANNELS) * _CHANNELS) / channels


def _tiny(args: tuple[Any, ...], time: int, samples: int) -> int:
    """The workspace of a real recurrent layer of few steps and samples."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    real = list(args)
    with torch.utils._python_dispatch._disable_current_modes(), unset_fake_temporarily():
        for place, tensor in enumerate(args):
            if isinstance(tensor, Tensor):
                shape = list(tensor.shape)
                if place == 0:
                    shape[:2] = [time, samples]
                elif place in (5, 6):
                    shape[-2] = samples
                real[place] = torch.zeros(shape, dtype=tensor.dtype)
        outputs = _aten.mkldnn_rnn_layer(*real)
        return int(outputs[3].untyped_storage().nbytes())
