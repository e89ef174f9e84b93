"""The state of a run as it is now: copied, so that later updates do not change it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wholebatch.core.errors import InputTypeError

_LEAVES = (bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device)
_CONTAINERS = (dict, OrderedDict, list, tuple)


def require_plain(state: Any, name: str = "state") -> None:
    """See that ``state`` is what ``torch.load(weights_only=True)`` reads back as it was.

    That is dicts, lists and tuples of tensors, numbers and strings. Subclasses count as strangers.

    Raises:
        InputTypeError: something else is in it; the message names its place.
    """
    kind = type(state)
    if kind in _LEAVES or (isinstance(state, Tensor) and kind in (Tensor, torch.nn.Parameter)):
        return
    if kind not in _CONTAINERS:
        raise InputTypeError(
            f"{name} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold; "
            "give dicts, lists and tuples of tensors, numbers and strings (a NumPy number: .item())"
        )
    if isinstance(state, dict):
        for key, value in state.items():
            require_plain(key, f"the key {key!r} of {name}")
            require_plain(value, f"{name}[{key!r}]")
    else:
        for place, value in enumerate(state):
            require_plain(value, f"{name}[{place}]")


class Snapshot:
    """A copy of ``state`` on the CPU; what happens to its tensors afterwards is not in it.

    From a GPU the copies go to pinned memory without waiting: they are ordered before what the caller does next
    on its stream. Call :meth:`ready` before reading. Tensors that were one (tied weights) stay one.

    >>> weight = torch.ones(2)
    >>> snapshot = Snapshot({"a": weight, "b": [weight]})
    >>> _ = weight.zero_()
    >>> snapshot.ready()
    {'a': tensor([1., 1.]), 'b': [tensor([1., 1.])]}
    """

    def __init__(self, state: Any) -> None:
        self._events: dict[torch.device, Any] = {}
        self._state = _map(state, self._copy, {})
        for device in self._events:
            self._events[device] = torch.cuda.Event()
            self._events[device].record(torch.cuda.current_stream(device))

    def _copy(self, tensor: Tensor) -> Tensor:
        if tensor.device.type == "cuda" and tensor.layout is torch.strided:
            self._events[tensor.device] = None
            pinned = torch.empty_like(tensor, device="cpu", pin_memory=True)
            return pinned.copy_(tensor, non_blocking=True)
        if tensor.device.type == "meta":
            return tensor  # without content: the first process saves it
        return tensor.clone() if tensor.device.type == "cpu" else tensor.to("cpu")

    def ready(self) -> Any:
        """Wait for the copies and return them."""
        for event in self._events.values():
            event.synchronize()
        return self._state


def compact(state: Any) -> Any:
    """Return ``state`` without gradients, and with tensors that view a part of a larger storage copied.

    ``torch.save`` writes the whole storage of a view: a slice of ten elements may take a gigabyte.
    """
    return _map(state, lambda tensor: tensor.clone() if _is_part(tensor) else tensor, {})


def _is_part(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided:
        return False
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _map(state: Any, function: Callable[[Tensor], Tensor], known: dict[Any, Tensor]) -> Any:
    """``state`` with every tensor mapped once; ``known`` remembers which were."""
    if isinstance(state, Tensor):
        tensor = state.detach()
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return function(tensor)
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in known:
            known[place] = function(tensor)
        return known[place]
    if isinstance(state, dict):
        return type(state)((key, _map(value, function, known)) for key, value in state.items())
    if isinstance(state, torch.Size):
        return state
    if isinstance(state, list | tuple):
        return type(state)(_map(value, function, known) for value in state)
    return state
