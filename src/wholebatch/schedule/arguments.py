"""Checks of what schedules are made from: finite, non-negative numbers, kept as plain int and float."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from wholebatch.core.errors import ConfigError, InputTypeError


def number(owner: str, name: str, value: Any) -> float:
    """Return ``value`` as a plain int or float.

    Raises:
        InputTypeError: it is no number.
        ConfigError: it is negative, infinite or NaN.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputTypeError(f"{owner} needs a number for {name}; got {type(value).__name__} {value!r:.60}")
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not 0 <= plain < math.inf:
        raise ConfigError(f"{owner} got {name}={plain!r}; give a finite number of at least 0")
    return plain


def check(schedule: Any, *, counts: Iterable[str] = (), rates: Iterable[str] = ()) -> None:
    """Check the named fields of a frozen dataclass and make them plain: counts stay int, rates become float."""
    owner = type(schedule).__name__
    for name in counts:
        object.__setattr__(schedule, name, number(owner, name, getattr(schedule, name)))
    for name in rates:
        object.__setattr__(schedule, name, float(number(owner, name, getattr(schedule, name))))


def increasing(owner: str, name: str, values: Any) -> tuple[float, ...]:
    """Return ``values`` as a tuple of plain numbers.

    Raises:
        InputTypeError: it is no sequence of numbers.
        ConfigError: a number is negative or not finite, or they do not increase strictly.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InputTypeError(f"{owner} needs a list of numbers for {name}; got {type(values).__name__} {values!r:.60}")
    counts = tuple([number(owner, f"{name}[{place}]", value) for place, value in enumerate(values)])
    for before, after in pairwise(counts):
        if after <= before:
            raise ConfigError(
                f"{owner} got {name}={list(counts)}, where {after} follows {before}; "
                "give counts that increase, each one once"
            )
    return counts
