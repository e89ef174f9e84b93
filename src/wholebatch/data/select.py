"""From batches that are dicts to ``(inputs, *targets)``, by the names of their keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wholebatch.core.errors import DataError, InputTypeError, nearest
from wholebatch.data.transform import Compose, Transform

Keys = str | Sequence[str]


class Select:
    """A transform that takes the inputs and the targets out of a batch that is a dict.

    One key of inputs gives its value, several give a dict of them. Every key of targets is one argument of the loss.

    Args:
        inputs: key or keys of what the model takes.
        targets: key or keys of what the loss is told beside the output; none gives ``(inputs,)``.
        channels_first: turn images of shape (samples, height, width, channels) among the inputs to (samples,
            channels, height, width), as torch's convolutions take them. The result is a view whose memory is what
            torch calls ``channels_last``.

    Raises:
        DataError: the batch is no dict, or lacks a key (the nearest is named).
        InputTypeError: a key that is no text.

    >>> import torch
    >>> batch = {"image": torch.zeros(2, 8, 6, 3), "class_label": torch.tensor([4, 7]), "relpath": ["a", "b"]}
    >>> images, labels = Select("image", "class_label", channels_first=True)(batch)
    >>> images.shape, labels
    (torch.Size([2, 3, 8, 6]), tensor([4, 7]))
    """

    def __init__(self, inputs: Keys, targets: Keys = (), *, channels_first: bool = False) -> None:
        self.inputs, self.targets = _keys("inputs", inputs), _keys("targets", targets)
        if not self.inputs:
            raise DataError("inputs names no key; say which one the model takes")
        self.channels_first = channels_first

    def __call__(self, batch: Any, **where: Any) -> tuple[Any, ...]:
        """Return ``(inputs, *targets)``; seed, epoch and indices do not matter."""
        if not isinstance(batch, Mapping):
            raise DataError(
                f"inputs={self.inputs[0]!r} names a key, but the batches are of {type(batch).__name__}; give a data "
                "set whose samples are dicts, or leave inputs and targets out"
            )
        for key in (*self.inputs, *self.targets):
            if key not in batch:
                hint = nearest(key, map(str, batch)) or f"; there are {', '.join(map(repr, batch))}"
                raise DataError(f"the batches have no key {key!r}{hint}")
        inputs = {key: self._turned(key, batch[key]) for key in self.inputs}
        return (inputs[self.inputs[0]] if len(inputs) == 1 else inputs, *(batch[key] for key in self.targets))

    def _turned(self, key: str, value: Any) -> Any:
        if not self.channels_first:
            return value
        if isinstance(value, Tensor):
            return value.permute(0, 3, 1, 2) if value.ndim == 4 else value
        raise DataError(
            f"{key!r} should hold images, but it holds {value!r:.80}; paths stand in for images where a data set was "
            "made with process_images=False"
        )

    def __repr__(self) -> str:
        return f"Select({list(self.inputs)}, {list(self.targets)}, channels_first={self.channels_first})"


def _keys(name: str, keys: Keys) -> tuple[str, ...]:
    found = (keys,) if isinstance(keys, str) else tuple(keys)
    for key in found:
        if not isinstance(key, str):
            raise InputTypeError(f"{name} holds {key!r}; give the name of a key, or several")
    return found


def selection(dataset: Any, inputs: Keys | None = None, targets: Keys | None = None) -> Select | None:
    """Return what takes inputs and targets out of a data set's dicts, or None where nobody says how.

    What is not said is what the data set says of itself: ``batch_keys``, a pair of names, and ``channels_last``.

    Raises:
        DataError: targets without inputs.
    """
    own = getattr(dataset, "batch_keys", None)
    own = Select(*own) if isinstance(own, tuple) and len(own) == 2 else None
    turn = own is not None and bool(getattr(dataset, "channels_last", False))
    if inputs is None and targets is None:
        return None if own is None else Select(own.inputs, own.targets, channels_first=turn)
    if inputs is None and own is None:
        raise DataError(f"targets={targets!r} without inputs; say which key the model takes, too")
    first = own.inputs if inputs is None and own else _keys("inputs", inputs or ())
    rest = (own.targets if own else ()) if targets is None else targets
    return Select(first, rest, channels_first=turn and own is not None and first == own.inputs)


def with_selection(transform: Transform | None, select: Select | None) -> Transform | None:
    """Return ``transform`` followed by ``select``, which is not done twice."""
    last = transform.transforms[-1] if isinstance(transform, Compose) and transform.transforms else transform
    if select is None or (isinstance(last, Select) and repr(last) == repr(select)):
        return transform
    return select if transform is None else Compose(transform, select)
