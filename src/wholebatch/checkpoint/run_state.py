"""What a run is: everything that its next step depends on, and what may not change when it goes on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from torch import Tensor

from wholebatch.checkpoint.part import Part
from wholebatch.core.errors import CheckpointError, InputError, nearest
from wholebatch.version import __version__

FORMAT = 1
_MISSING = object()


def _versions() -> dict[str, str]:
    return {"wholebatch": __version__, "torch": str(torch.__version__), "python": platform.python_version()}


@dataclass
class RunState:
    """A run between two steps. All of it is plain: dicts and lists of tensors, numbers and strings; and where the model
    is split over processes, a :class:`Part` for a tensor.

    Nothing in it depends on the number of processes or on the micro-batch, but for the estimate of the gradient noise.

    Attributes:
        model: its weights and buffers (:func:`wholebatch.checkpoint.plain_state`).
        optimizer: its ``state_dict()``.
        step: that of :class:`wholebatch.Step`: counters, schedule.
        loader: its ``state_dict()``: epoch, samples consumed.
        sums: the epoch's metrics so far, by name: each one's ``state_dict()`` summed over all processes.
        history: how many records the history has, or the records themselves.
        seed: of order and draws.
        batch_size: samples of a step, over all processes.
        data_length: samples of the training data; None where only running tells.
        config: by name, every other setting that changes the result (loss, schedule, precision, a digest of the
            data, …); numbers, strings, lists and dicts of them.
        more: whatever else the next step depends on, by name.
        versions: of what wrote it.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    step: dict[str, Any]
    loader: dict[str, Any]
    seed: int
    batch_size: int
    data_length: int | None = None
    sums: dict[str, Any] = field(default_factory=dict)
    history: int | list[dict[str, Any]] = 0
    config: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_versions)

    @property
    def config_digest(self) -> str:
        """SHA-256 of ``config``, whatever the order of its keys."""
        return hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict for :meth:`wholebatch.checkpoint.Store.save`; tensors are shared, not copied."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"format": FORMAT, **content, "config_digest": self.config_digest}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_dict` was called on.

        Raises:
            CheckpointError: it is no such dict, or one of a newer format.
        """
        names = {entry.name for entry in fields(cls)}
        found = content.get("format") if isinstance(content, Mapping) else None
        if found != FORMAT:
            raise CheckpointError(f"this is no state of a run in format {FORMAT}, but in format {found!r}")
        missing = sorted(names - content.keys())
        if missing:
            raise CheckpointError(f"this state of a run lacks {', '.join(missing)}")
        return cls(**{name: content[name] for name in names})

    def check_same(self, other: RunState, allow: Collection[str] = ()) -> list[str]:
        """See that ``other``, the run to go on with, is the same run as this one, which was saved.

        Compared are ``batch_size``, ``seed``, ``data_length``, the names, shapes and types of ``model``, and every
        entry of ``config``. Go on with a shorter or longer training, another number of processes or another
        micro-batch as you like: they are not in here.

        Args:
            other: the same, made of what the run is to go on with.
            allow: names of what may differ although it changes the result.

        Returns:
            Lines worth saying: what differs and was allowed, and versions.

        Raises:
            CheckpointError: something else differs; one line names it with both values.
            InputError: ``allow`` names something that is not compared.
        """
        mine, theirs = self._compared(), other._compared()
        unknown = [name for name in allow if name not in mine and name not in theirs]
        if unknown:
            known = sorted({*mine, *theirs})
            hint = nearest(unknown[0], known) or f"; it can name {', '.join(known)}"
            raise InputError(f"resume_allow names {unknown[0]!r}, which is not compared{hint}")
        differ = {
            name: _difference(name, mine.get(name, _MISSING), theirs.get(name, _MISSING))
            for name in {**mine, **theirs}
            if not _equal(mine.get(name, _MISSING), theirs.get(name, _MISSING))
        }
        refused = {name: text for name, text in differ.items() if name not in allow}
        if refused:
            names = "".join(f"{name!r}, " for name in refused).rstrip(" " if len(refused) == 1 else ", ")
            raise CheckpointError(
                f"the run cannot go on as the same one: {'; '.join(refused.values())}. Set it back, start in another "
                f"run folder, or say that it may change the result: resume_allow=({names}), or --allow NAME on the "
                "command line"
            )
        versions = [
            f"saved with {name} {version}, going on with {other.versions.get(name, 'none')}"
            for name, version in self.versions.items()
            if version != other.versions.get(name)
        ]
        return [f"going on with another {name}: {text}" for name, text in differ.items()] + versions

    def _compared(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("batch_size", "seed", "data_length")}
        return {**own, "model": _shapes(self.model), **self.config}


def _shapes(model: Mapping[str, Any]) -> dict[str, str]:
    """Name to shape and type of every tensor of a model's state."""
    return {
        name: f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        for name, value in model.items()
        if isinstance(value, Tensor | Part)
    }


def _equal(first: Any, second: Any) -> bool:
    """Equality in which a list is a tuple and NaN is NaN."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    return first is second or bool(first == second) or (first != first and second != second)


def _difference(name: str, mine: Any, theirs: Any) -> str:
    """One clause that names what differs."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in {**mine, **theirs}:
            first, second = mine.get(key, _MISSING), theirs.get(key, _MISSING)
            if not _equal(first, second):
                return _difference(f"{name}[{key!r}]", first, second)
    return f"{name} was {_shown(mine)} and is now {_shown(theirs)}"


def _shown(value: Any) -> str:
    return "absent" if value is _MISSING else f"{value!r:.80}" if not isinstance(value, str) else f"{value:.80}"
