"""What happens to a micro-batch between the data set and the model, as batched tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from wholebatch.core import tree
from wholebatch.core.errors import DataError, InputTypeError


class Transform(Protocol):
    """A function of a micro-batch, called after it was moved to the device.

    What it draws at random must be keyed by (seed, epoch, sample) (``wholebatch.core.keys.uniform``), so
    that a sample becomes the same whatever micro-batch it is in.
    """

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return the new micro-batch.

        ``indices`` (int64, on the host) are the samples' numbers in the data set.
        """
        ...


def finisher(
    transform: Transform | None, seed: int, epoch: int, device: torch.device | str | None
) -> Callable[[Any, Tensor], Any] | None:
    """Return what moves a micro-batch to ``device`` and transforms it there, or None where nothing is to do."""
    if transform is None and device is None:
        return None
    target = None if device is None else torch.device(device)

    def finish(batch: Any, indices: Tensor) -> Any:
        if target is not None:
            batch = tree.to_device(batch, target)
        return batch if transform is None else transform(batch, seed=seed, epoch=epoch, indices=indices)

    return finish


def change_field(batch: Any, field: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return ``batch`` with one tensor changed: the batch itself if it is a tensor, else ``batch[field]``.

    >>> change_field((torch.ones(2), torch.zeros(2)), 0, torch.neg)
    (tensor([-1., -1.]), tensor([0., 0.]))
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        if field not in batch:
            raise DataError(f"a transform works on field {field!r}, the batch has {list(batch)}; say field=...")
        return {**batch, field: change(batch[field])}
    if isinstance(batch, tuple | list) and isinstance(field, int) and -len(batch) <= field < len(batch):
        parts = list(batch)
        parts[field] = change(parts[field])
        return parts if isinstance(batch, list) else tuple(parts)
    raise DataError(f"a transform works on field {field!r}, which a batch of {type(batch).__name__} does not have")


class Compose:
    """Transforms one after the other; ``Compose()`` changes nothing."""

    def __init__(self, *transforms: Transform) -> None:
        for transform in transforms:
            if not callable(transform):
                raise InputTypeError(f"Compose takes callables, got {transform!r}; write Compose(first, second)")
        self.transforms = transforms

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return what the last transform returns."""
        for transform in self.transforms:
            batch = transform(batch, seed=seed, epoch=epoch, indices=indices)
        return batch

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.transforms))})"


class Normalize:
    """Bytes become floats at the last moment: (x · scale - mean) / std, float32 (float64 stays float64).

    Args:
        mean: of the scaled values, one number or one per channel (axis 1).
        std: of the scaled values, likewise; positive.
        scale: what one step of the stored values is worth, 1/255 for 8-bit images.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        DataError: a ``std`` that is not positive.

    >>> normalize = Normalize(mean=0.5, std=0.5)
    >>> normalize(torch.tensor([0, 255], dtype=torch.uint8), seed=0, epoch=0, indices=torch.arange(2))
    tensor([-1.,  1.])
    """

    def __init__(
        self,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        scale: float = 1 / 255,
        field: Any = 0,
    ) -> None:
        self.mean, self.std, self.scale, self.field = mean, std, scale, field
        if not (torch.as_tensor(std) > 0).all():
            raise DataError(f"Normalize divides by std, which must be positive; got {std}")

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return the batch with its images normalised; nothing is drawn."""
        return change_field(batch, self.field, self.apply)

    def apply(self, images: Tensor) -> Tensor:
        """Return normalised images, same shape."""
        new = images.to(torch.float64 if images.dtype == torch.float64 else torch.float32, copy=True)
        new.mul_(self.scale).sub_(self._per_channel(self.mean, new))
        return new.div_(self._per_channel(self.std, new))

    def undo(self, images: Tensor) -> Tensor:
        """Return the scaled values, x · std + mean, that normalised images were made of, same shape."""
        return images * self._per_channel(self.std, images) + self._per_channel(self.mean, images)

    def _per_channel(self, value: float | Sequence[float], images: Tensor) -> Any:
        """``value`` as something that broadcasts over axis 1."""
        if not isinstance(value, Sequence):
            return value
        if images.ndim < 2 or images.shape[1] != len(value):
            raise DataError(f"Normalize has {len(value)} channels, the images are of shape {tuple(images.shape)}")
        return torch.tensor(value, dtype=images.dtype, device=images.device).view(-1, *[1] * (images.ndim - 2))

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std}, scale={self.scale:.6g})"
