"""Schedules by the names that a configuration uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from wholebatch.core.errors import ConfigError, nearest
from wholebatch.schedule.open_ended import ConstantScheduler, FactorScheduler, MultiFactorScheduler, SquareRootScheduler
from wholebatch.schedule.piecewise import Schedule
from wholebatch.schedule.planned import CosineScheduler, LinearScheduler, PolynomialScheduler, TrapezoidScheduler

#: Each shape's name in a configuration.
SHAPES: Mapping[str, type[Schedule]] = MappingProxyType(
    {
        "cosine": CosineScheduler,
        "polynomial": PolynomialScheduler,
        "linear": LinearScheduler,
        "factor": FactorScheduler,
        "multi_factor": MultiFactorScheduler,
        "square_root": SquareRootScheduler,
        "trapezoid": TrapezoidScheduler,
        "constant": ConstantScheduler,
    }
)


def build(shape: str, **arguments: Any) -> Schedule:
    """Return the schedule of a name in :data:`SHAPES`, made with ``arguments``.

    Raises:
        ConfigError: an unknown shape or argument (the nearest one is named), a missing argument, an impossible value.
        InputTypeError: an argument is of a kind that cannot be.

    >>> build("cosine", max_update=20, base_lr=0.3)
    CosineScheduler(max_update=20, base_lr=0.3, final_lr=0.0, warmup_steps=0, warmup_begin_lr=0.0)
    """
    if shape not in SHAPES:
        raise ConfigError(f"no schedule {shape!r}{nearest(str(shape), SHAPES)}; the shapes are {', '.join(SHAPES)}")
    kind = SHAPES[shape]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in arguments:
        if name not in known:
            raise ConfigError(
                f"the schedule {shape!r} has no argument {name!r}{nearest(name, known)}; it takes {', '.join(known)}"
            )
    required = [field.name for field in fields(kind) if field.default is MISSING]  # type: ignore[arg-type]
    missing = [name for name in required if name not in arguments]
    if missing:
        raise ConfigError(f"the schedule {shape!r} also needs {', '.join(missing)}; it takes {', '.join(known)}")
    return kind(**arguments)
