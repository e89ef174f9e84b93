"""Anybody's transforms: a callable for one image, or for all images of a micro-batch."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wholebatch.core import imports, keys
from wholebatch.core.errors import DataError, InputTypeError, PromiseWarning
from wholebatch.data.transform import change_field

_NUMBER = 7  # of these draws among the transforms'


class PerSample:
    """Call ``function(image)`` for every image, (channels, height, width), under generators of the sample's own.

    Torch's, NumPy's and Python's generators (the global ones) are seeded from (seed, epoch, sample) for each call and
    given back as they were found, so that whatever the function draws from them is the same in any micro-batch. A
    generator of the function's own is out of reach.

    Args:
        function: gives an image, or a batch of one; all of one shape. For example one of ``torchvision.transforms.v2``.
        name: what errors call it; its ``repr``, if None.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        InputTypeError: ``function`` cannot be called.
        DataError: it failed on a sample (which is named), or gave no image, or images of several shapes.

    >>> roll = PerSample(lambda image: image.roll(random.randrange(4), -1), name="roll")
    >>> images = torch.arange(4).expand(3, 1, 1, 4)
    >>> whole = roll(images, seed=0, epoch=0, indices=torch.arange(3))
    >>> torch.equal(whole[2:], roll(images[2:], seed=0, epoch=0, indices=torch.tensor([2])))
    True
    """

    def __init__(self, function: Callable[[Tensor], Any], name: str | None = None, field: Any = 0) -> None:
        self.function, self.name, self.field = _checked(function), name or repr(function), field

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return the batch with its images changed."""

        def change(images: Tensor) -> Tensor:
            made = []
            with _generators_given_back(images.device):
                for image, number in zip(images.unbind(0), indices.tolist(), strict=True):
                    _seed(keys.key(seed, "augment", epoch, _NUMBER, number), images.device)
                    made.append(self._one(image, number))
            return self._together(made) if made else images

        return change_field(batch, self.field, change)

    def _one(self, image: Tensor, number: int) -> Tensor:
        try:
            new = self.function(image)
        except Exception as error:
            reason = " ".join(str(error).split()[:40])
            shape = f"{str(image.dtype).removeprefix('torch.')}{tuple(image.shape)}"
            raise DataError(
                f"{self.name} failed on sample {number} ({shape}): {type(error).__name__}: {reason}"
            ) from error
        if not isinstance(new, Tensor):
            raise DataError(f"{self.name} gave a {type(new).__name__} for sample {number}; it must give a tensor")
        return new[0] if new.ndim == image.ndim + 1 and len(new) == 1 else new

    def _together(self, made: list[Tensor]) -> Tensor:
        shapes = {tuple(new.shape) for new in made}
        if len(shapes) > 1:
            two = " and ".join(map(str, sorted(shapes)[:2]))
            raise DataError(f"{self.name} gave images of several shapes, {two}; let it crop or resize to one")
        return torch.stack(made)

    def __repr__(self) -> str:
        return f"PerSample({self.name})"


class PerBatch:
    """Call ``function(images)`` for all images of a micro-batch at once, (samples, channels, height, width).

    Faster, and a weaker promise: the generators are seeded from (seed, epoch, the first sample) and given back, but
    what a sample gets depends on the micro-batch it is in, as soon as the function draws; a :class:`PromiseWarning`
    says so once. A function that draws by key is a transform itself (:class:`Transform`) and needs no wrapping.

    Args:
        function: gives as many images as it gets. For example one of ``kornia.augmentation``.
        name: what errors call it; its ``repr``, if None.
        field: place or key of the images in the batch; a batch that is a tensor is the images.

    Raises:
        InputTypeError: ``function`` cannot be called.
        DataError: it failed, or gave another number of images.
    """

    def __init__(self, function: Callable[[Tensor], Any], name: str | None = None, field: Any = 0) -> None:
        self.function, self.name, self.field = _checked(function), name or repr(function), field
        self._warned = False

    def __call__(self, batch: Any, *, seed: int, epoch: int, indices: Tensor) -> Any:
        """Return the batch with its images changed."""

        def change(images: Tensor) -> Tensor:
            if not len(images):
                return images
            with _generators_given_back(images.device):
                _seed(keys.key(seed, "augment", epoch, _NUMBER, int(indices[0])), images.device)
                before = _states(images.device)
                new = self._all(images)
                if not self._warned and _states(images.device) != before:
                    self._warn()
            return new

        return change_field(batch, self.field, change)

    def _all(self, images: Tensor) -> Tensor:
        try:
            new = self.function(images)
        except Exception as error:
            reason = " ".join(str(error).split()[:40])
            raise DataError(f"{self.name} failed on {tuple(images.shape)}: {type(error).__name__}: {reason}") from error
        if not isinstance(new, Tensor) or len(new) != len(images):
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise DataError(f"{self.name} got images {tuple(images.shape)} and gave {got}; one for each is needed")
        return new

    def _warn(self) -> None:
        self._warned = True
        warnings.warn(
            f"{self.name} draws for a micro-batch at once, so what a sample gets depends on the micro-batch it is in; "
            "call it per sample (PerSample, callable_per=sample), or let it draw by key, for a result that does not",
            PromiseWarning,
            stacklevel=2,
        )

    def __repr__(self) -> str:
        return f"PerBatch({self.name})"


def by_path(path: str, per: str = "sample", field: Any = 0, **arguments: Any) -> PerSample | PerBatch:
    """Return the callable that ``package.module:name`` names, made with ``arguments``, as a transform.

    A class is made with them; of a function they are arguments of every call.

    Raises:
        ConfigError: there is no such callable, or it does not take an argument.

    >>> by_path("torch:flip", dims=[-1])
    PerSample(torch:flip(dims=[-1]))
    """
    found = imports.thing(path)
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    function = imports.call(path, found, arguments) if isinstance(found, type) else _bound(found, arguments)
    name = f"{path}({given})"
    return PerBatch(function, name, field) if per == "batch" else PerSample(function, name, field)


def _bound(function: Any, arguments: dict[str, Any]) -> Callable[[Tensor], Any]:
    _checked(function)
    return (lambda images: function(images, **arguments)) if arguments else function


def _checked(function: Any) -> Callable[[Tensor], Any]:
    if not callable(function):
        raise InputTypeError(f"a transform is a callable, got {function!r:.80}")
    return function


def _seed(key: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    random.seed(key)


def _states(device: torch.device) -> tuple[Any, ...]:
    """The generators' states as something that compares."""
    on_gpu = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    on_host, numpy = torch.get_rng_state().numpy().tobytes(), _numpy_state()
    return on_host, on_gpu, numpy[1].tobytes(), numpy[2:], random.getstate()


def _numpy_state() -> Any:
    return np.random.get_state()


@contextmanager
def _generators_given_back(device: torch.device) -> Iterator[None]:
    numpy, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numpy)
        random.setstate(python)
