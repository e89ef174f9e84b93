"""What the processes of one tensor group exchange in a step, and how much of the model each of them has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorGroup:
    """Some layers of a model are split over processes that work on the same samples.

    Attributes:
        summed: bytes a sample that are added up within the group, forward and backward.
        gathered: bytes a sample that are made whole of the processes' parts.
        sums: how often a pass adds up.
        gathers: how often a pass makes whole.
        norms: bytes of gradients that are added up within the group once a step: of layers that see some tokens.
        norm_sums: how many tensors they are.
        split: the share of the parameters' bytes that is split, between 0 and 1.
    """

    summed: int = 0
    gathered: int = 0
    sums: int = 0
    gathers: int = 0
    norms: int = 0
    norm_sums: int = 0
    split: float = 0.0

    def part(self, size: int) -> float:
        """Return the part of the parameters that each of ``size`` processes has.

        >>> TensorGroup(split=0.5).part(4)
        0.625
        """
        return 1 - self.split + self.split / size

    def sent(self, size: int, samples: int) -> float:
        """Return the bytes that each of ``size`` processes sends for a step of ``samples`` samples, along a ring.

        >>> TensorGroup(summed=100, gathered=10).sent(2, 8)
        840.0
        """
        return (size - 1) / size * (samples * (2 * self.summed + self.gathered) + 2 * self.norms)

    def hops(self, size: int, passes: int) -> int:
        """Return the messages of a step of ``passes`` passes that each wait for the one before.

        >>> TensorGroup(sums=3, gathers=1).hops(2, 5)
        35
        """
        return (size - 1) * (passes * (2 * self.sums + self.gathers) + 2 * self.norm_sums)
