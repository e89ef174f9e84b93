"""The state of a split model and of its optimizer, as checkpoints hold it: in parts of each process, or whole.

In parts, nobody ever holds a whole tensor, neither while saving nor while going on. A tensor of an optimizer that is a
sum still to be made is gathered; so is everything for a run folder at a URL. One that is shaped otherwise than its
parameter (a mean per row) is held whole by every process that goes on, since nothing says how to split it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn

from wholebatch.checkpoint import Part, plain_state
from wholebatch.step.parts import is_part, local, order_of, part, whole

Each = Callable[[str, Any, Tensor], Any]  # of a name, a tensor and its parameter: what is in its place


def model_state(model: nn.Module, in_parts: bool) -> dict[str, Any]:
    """Return a model's state by plain names, a :class:`Part` or the whole in the place of every split tensor.

    All processes call it. Without ``in_parts`` one tensor is gathered after the other, and peak memory is that of the
    whole state on the first process's CPU, and of one tensor on the others', whose tensors have no content (device
    "meta").
    """
    known: dict[int, Any] = {}
    put = _part_or_kept if in_parts else _kept

    def one(name: str, value: Any, held: Any) -> Any:
        if not is_part(value):
            return value
        if id(held) not in known:  # tied weights stay one
            known[id(held)] = put(f"model.{name}", value, held)
        return known[id(held)]

    state, held = plain_state(model), _held(model)
    return {name: one(name, value, held[name]) for name, value in state.items()}


def optimizer_state(optimizer: torch.optim.Optimizer, in_parts: bool) -> dict[str, Any]:
    """Likewise an optimizer's."""
    put = _part_or_kept if in_parts else _kept
    return _mapped(optimizer, optimizer.state_dict(), lambda *one: put(*one) if is_part(one[1]) else one[1])


def model_to_load(model: nn.Module, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Part]]:
    """Return what ``model`` can load, and what has to be read for that: parts of its own tensors.

    Args:
        model: split or not, in this layout or another.
        state: as it was saved, with tensors and parts that hold nothing.
    """
    held, wanted = _held(model), []

    def one(name: str, value: Any) -> Any:
        own = held.get(name)
        if not isinstance(value, Part) and not is_part(own):
            return value  # whole in both
        if own is None or value.shape != own.shape:
            return value  # which the model refuses by its name
        if isinstance(value, Tensor):
            return part(value, own)
        made = own.detach() if own.dtype == value.dtype else torch.empty_like(own.detach(), dtype=value.dtype)
        wanted.append(_part(value.name, made, own))
        return made

    return {name: one(name, value) for name, value in state.items()}, wanted


def optimizer_to_load(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> tuple[dict[str, Any], list[Part]]:
    """Likewise an optimizer, for which new tensors are made."""
    wanted = []

    def one(name: str, value: Any, parameter: Tensor) -> Any:
        if isinstance(value, Tensor):
            return part(value, parameter) if value.ndim else value  # a single number goes with parts as it is
        if value.shape == parameter.shape:
            made = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
        else:
            made = part(torch.empty(value.shape, dtype=value.dtype, device=parameter.device), parameter)
        wanted.append(_part(value.name, made, parameter))
        return made

    return _mapped(optimizer, state, one), wanted


def _held(model: nn.Module) -> dict[str, Any]:
    """A model's parameters and buffers themselves, by plain names."""
    return dict(zip(plain_state(model), model.state_dict(keep_vars=True).values(), strict=True))


def _part_or_kept(name: str, tensor: Tensor, parameter: Tensor) -> Any:
    summed = any(placement.is_partial() for placement in tensor.placements)  # type: ignore[attr-defined]
    return (_kept if summed else _part)(name, tensor, parameter)


def _kept(name: str, tensor: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, whose content only the first process keeps; the others keep its shape and dtype."""
    full = whole(tensor, parameter)
    return full if distributed.get_rank() == 0 else full.to("meta")


def _part(name: str, tensor: Tensor, parameter: Tensor) -> Part:
    """What this process holds of ``tensor``, which shares its memory.

    Rows that are dealt out in another order than the whole one's are several pieces.
    """
    own, starts = local(tensor), (0,) * tensor.ndim
    if is_part(tensor):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
        starts = tuple(compute_local_shape_and_global_offset(tensor.shape, mesh, placements)[1])
    pieces: tuple[tuple[tuple[int, ...], Tensor], ...] = ((starts, own),) if own.numel() else ()
    order = order_of(tensor, parameter)
    if pieces and order is not None and is_part(tensor):
        rows = order[starts[0] : starts[0] + len(own)].tolist()
        cuts = [0, *(place for place in range(1, len(rows)) if rows[place] != rows[place - 1] + 1), len(rows)]
        pieces = tuple(((rows[start], *starts[1:]), own[start:stop]) for start, stop in pairwise(cuts))
    return Part(name, tuple(tensor.shape), tensor.dtype, pieces)


def _mapped(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], function: Each) -> dict[str, Any]:
    """An optimizer's state with ``function`` of every tensor and part that belongs to a parameter."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = dict(zip(numbers, held, strict=False))
    entries = {
        number: {
            name: function(f"optimizer.{number}.{name}", value, parameters[number])
            if isinstance(value, Tensor | Part) and number in parameters
            else value
            for name, value in entry.items()
        }
        for number, entry in state["state"].items()
    }
    return {**state, "state": entries}
