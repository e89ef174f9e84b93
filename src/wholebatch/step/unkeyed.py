"""Which layer draws random numbers that no key covers: one forward with hooks tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm

from wholebatch.step.draws import Draws


def layers_that_draw(model: nn.Module, forward: Callable[[], Any], draws: Draws, mark: Callable[[], None]) -> list[str]:
    """Return the layers inside which the generator moved unaccounted for, by running ``forward`` once.

    ``mark`` begins the micro-batch's draws anew. A movement belongs to the innermost module that was running.
    """
    running: list[str] = []
    found: list[str] = []

    def attribute() -> None:
        if draws.moved():
            name = running[-1] if running else "the loss function"
            if name not in found:
                found.append(name)
        mark()

    def entering(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            attribute()
            running.append(name)

        return hook

    def leaving(*_: Any) -> None:
        attribute()
        running.pop()

    handles = []
    for name, module in model.named_modules():
        label = f"{name or 'the model'} ({type(module).__name__})"
        handles.append(module.register_forward_pre_hook(entering(label)))
        handles.append(module.register_forward_hook(leaving))
    try:
        mark()
        with torch.no_grad(), unchanged_buffers(model):
            forward()
        attribute()
    finally:
        for handle in handles:
            handle.remove()
    return found


class PowerIterations:
    """The vectors of spectral norm, which every forward in training mode moves by one power iteration.

    A whole batch moves them once, so that every micro-batch of a window has to start from the same ones.
    """

    def __init__(self, model: nn.Module) -> None:
        self.vectors: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, parametrizations._SpectralNorm):
                self.vectors += [getattr(module, name) for name in ("_u", "_v") if hasattr(module, name)]
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    self.vectors += [getattr(module, f"{hook.name}_{letter}") for letter in "uv"]
        self._begun: list[Tensor] = []

    def micro_batch(self, first: bool) -> None:
        """Keep the vectors at the window's beginning, put them back at every later micro-batch's."""
        if first:
            self._begun = [vector.clone() for vector in self.vectors]
        with torch.no_grad():
            for vector, begun in zip(self.vectors, self._begun, strict=True):
                vector.copy_(begun)


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what a forward does to the buffers, running statistics among them."""
    owners = {id(module._buffers): module._buffers for module in model.modules()}.values()
    places = [(owner, name, buffer) for owner in owners for name, buffer in owner.items() if buffer is not None]
    kept = [(buffer.clone(), buffer._version) for _, _, buffer in places]
    try:
        yield
    finally:
        with torch.no_grad():
            for (owner, name, buffer), (value, version) in zip(places, kept, strict=True):
                owner[name] = buffer
                if buffer._version != version:
                    buffer.copy_(value)
                elif not torch.equal(buffer, value):  # batch norm changes its statistics without a new version
                    buffer.data.copy_(value)
