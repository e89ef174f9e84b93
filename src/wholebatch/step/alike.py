"""Processes that share the work were started alike: what differs is found before the first step, and said by all."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from wholebatch.core.errors import InputError
from wholebatch.core.processes import Processes
from wholebatch.step.described import optimizer_facts

_NAMED = 4  # differences in one message; more of them mostly follow from these
_ABSENT = "nothing"


def require_alike(processes: Processes, facts: Callable[[], Mapping[str, Any]]) -> None:
    """See that ``facts()``, nested dicts of numbers and text, are the same in every process; all of them call it.

    Raises:
        InputError: they are not; every process raises the same message, which names what differs, and where.
    """
    if processes.size == 1:
        return
    own = {name: _shown(value) for name, value in _leaves(facts())}
    if len(set(processes.exchange(zlib.crc32(json.dumps(own, sort_keys=True).encode())))) == 1:
        return
    raise InputError(
        f"the processes were started differently: {'; '.join(_differences(processes.gather(own)))}; "
        "start all of them with the same arguments, model and data"
    )


def facts_of_training(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return what gradients are summed and applied by: the trained parameters, and the optimizer's, in its order."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        "trained parameters": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
        "parameters of the optimizer": [
            [names.get(parameter, "one of its own") for parameter in group["params"]]
            for group in optimizer.param_groups
        ],
        "optimizer": optimizer_facts(optimizer),
    }


def _leaves(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", value


def _shown(value: Any) -> str:
    """Short, and other where the value is other."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}… ({zlib.crc32(text.encode()):08x})"


def _differences(everyones: Sequence[Mapping[str, str]]) -> list[str]:
    """A clause per difference from process 0, those of several processes together."""
    first = everyones[0]
    clauses: dict[tuple[str, str, str], list[str]] = {}
    for rank, other in enumerate(everyones):
        for name in {**first, **other}:
            mine, theirs = first.get(name, _ABSENT), other.get(name, _ABSENT)
            if mine != theirs:
                clauses.setdefault((name, mine, theirs), []).append(str(rank))
    said = [
        f"{name} is {theirs} in process {', '.join(ranks)} and {mine} in process 0"
        for (name, mine, theirs), ranks in clauses.items()
    ]
    return [*said[:_NAMED], *([f"{len(said) - _NAMED} more"] if len(said) > _NAMED else [])]
