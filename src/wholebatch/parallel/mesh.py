"""How the processes are laid out: along data, shard, tensor and pipeline, as one device mesh.

Ranks count through the dimensions in the order of :data:`DIMENSIONS`, the last one fastest: the ranks of one tensor
group are neighbours, since they talk most. The ranks along *data* and *shard* have different samples of a batch; those
along *tensor* and *pipeline* work on the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from wholebatch.core.errors import ConfigError
from wholebatch.core.processes import Alone, Group, Processes

DIMENSIONS = ("pipeline", "data", "shard", "tensor")
_SHOWN = 8  # layouts that one message names


@dataclass(frozen=True)
class Layout:
    """How many processes there are along each dimension; their product is the number of processes.

    >>> Layout.of({"shard": 2}, 4)
    Layout(data=2, shard=2, tensor=1, pipeline=1)
    """

    data: int = 1
    shard: int = 1
    tensor: int = 1
    pipeline: int = 1

    @classmethod
    def of(cls, said: Mapping[str, Any], size: int) -> Layout:
        """Return the layout that ``said`` means for ``size`` processes; "auto" data takes what the others leave.

        Raises:
            ConfigError: a number that is none, or a product that is not ``size``; the message says which would be.
        """
        numbers = {name: said.get(name, "auto" if name == "data" else 1) for name in DIMENSIONS}
        for name, number in numbers.items():
            if name == "data" and number in ("auto", None):
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                also = "'auto', or " if name == "data" else ""
                raise ConfigError(f"parallel: {name}={number!r}; expected {also}the number of processes along it")
        others = math.prod(number for name, number in numbers.items() if name != "data")
        if numbers["data"] in ("auto", None):
            numbers["data"] = max(1, size // others)
        if numbers["data"] * others != size:
            raise ConfigError(_misfit(numbers, size))
        return cls(**numbers)

    @property
    def size(self) -> int:
        """The number of processes."""
        return self.data * self.shard * self.tensor * self.pipeline

    @property
    def only_data(self) -> bool:
        """Whether every process has the whole model."""
        return self.shard == self.tensor == self.pipeline == 1

    def place(self, rank: int) -> dict[str, int]:
        """Return where ``rank`` is, along each dimension.

        >>> Layout(data=2, tensor=2).place(3)
        {'pipeline': 0, 'data': 1, 'shard': 0, 'tensor': 1}
        """
        found = {}
        for name in reversed(DIMENSIONS):
            rank, found[name] = divmod(rank, getattr(self, name))
        return {name: found[name] for name in DIMENSIONS}

    def sharing_samples(self) -> list[list[int]]:
        """Return the ranks that share a batch's samples, in their order; one list per tensor and pipeline place.

        >>> Layout(data=2, tensor=2).sharing_samples()
        [[0, 2], [1, 3]]
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for rank in range(self.size):
            place = self.place(rank)
            groups.setdefault((place["pipeline"], place["tensor"]), []).append(rank)
        return list(groups.values())


def _misfit(numbers: Mapping[str, int], size: int) -> str:
    asked = " × ".join(f"{name}={numbers[name]}" for name in DIMENSIONS if numbers[name] > 1)
    needed = math.prod(numbers.values())
    fitting = [_described(fit) for fit in _fits(size, [name for name in DIMENSIONS if numbers[name] > 1])]
    more = f", and {len(fitting) - _SHOWN} more" if len(fitting) > _SHOWN else ""
    count = "1 process" if size == 1 else f"{size} processes"
    return (
        f"parallel: {asked or 'data=1'} make {needed}, but the number of processes is {size}; {count} would fit "
        f"{' or '.join(fitting[:_SHOWN])}{more}; or start {needed} of them (wholebatch train --processes {needed}, or "
        f"torchrun --nproc-per-node {needed})"
    )


def _fits(size: int, names: list[str]) -> Iterator[dict[str, int]]:
    """Every layout of ``size`` processes along data and the dimensions ``names``."""
    along = ["data", *(name for name in names if name != "data")]
    divisors = [number for number in range(1, size + 1) if size % number == 0]
    for numbers in product(divisors, repeat=len(along)):
        if math.prod(numbers) == size:
            yield dict(zip(along, numbers, strict=True))


def _described(fit: Mapping[str, int]) -> str:
    return " × ".join(f"{name}={number}" for name, number in fit.items() if number > 1) or "data=1"


@dataclass(frozen=True)
class Mesh:
    """The processes in their layout.

    Attributes:
        layout: how many there are along each dimension.
        world: all of them.
        samples: those that share a batch's samples with this one (data × shard), in the order of the samples' parts.
        devices: torch's ``DeviceMesh`` with the names of ``DIMENSIONS``; None where there is one process.
    """

    layout: Layout
    world: Processes
    samples: Processes
    devices: Any

    def __getitem__(self, names: str | tuple[str, ...]) -> Any:
        """Return torch's ``DeviceMesh`` along one or several dimensions."""
        return self.devices[names]

    def along(self, name: str) -> Processes:
        """Return the processes that differ from this one along dimension ``name`` alone."""
        return Alone() if getattr(self.layout, name) == 1 else Group(self.devices.get_group(name))


def mesh_of(layout: Layout, world: Processes, device_type: str = "cpu") -> Mesh:
    """Return the mesh of all processes; they all call it.

    Args:
        layout: its size is that of ``world``.
        world: torch.distributed's default group, or one process.
        device_type: where the model is: "cpu" or "cuda".
    """
    if layout.size == 1:
        return Mesh(layout, world, world, None)
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    sizes = tuple(getattr(layout, name) for name in DIMENSIONS)
    devices = init_device_mesh(device_type, sizes, mesh_dim_names=DIMENSIONS)
    if layout.tensor == layout.pipeline == 1:
        return Mesh(layout, world, world, devices)
    if layout.data == layout.shard == 1:
        return Mesh(layout, world, Alone(), devices)
    own, _ = distributed.new_subgroups_by_enumeration(layout.sharing_samples())
    return Mesh(layout, world, Group(own), devices)
