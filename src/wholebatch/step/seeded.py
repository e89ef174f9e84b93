"""The draws of bitwise mode: every micro-batch begins with generators that are seeded from (seed, step, position).

So whatever the model draws in it (dropout of any kind, recurrent dropout among it, and draws of its own) is a function
of these three. No function is replaced: which sample gets which number may depend on the micro-batch here.
"""

from __future__ import annotations

from typing import Any

import torch

from wholebatch.step.draws import Draws


class Seeded(Draws):
    """Seeds torch's generators, of the CPU and of the model's device, and gives them back as they were found."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles begin anew."""
        return _anew, (self.seed, None if self._device is None else str(self._device.device))

    def _replace(self) -> None:
        """Leave torch's functions as they are."""

    def micro_batch(self, step: int, position: int, samples: int, twice: bool = False) -> None:
        """A micro-batch begins: ``samples`` samples from ``position`` in the whole batch on."""
        super().micro_batch(step, position, samples, twice=True)

    def unkeyed(self) -> bool:
        """Nothing is: every draw follows from the seed."""
        return False


def _anew(seed: int, device: str | None) -> Seeded:
    return Seeded(seed, torch.device(device or "cpu"))
