"""A schedule: a value as a pure function of progress, given in pieces.

Progress ``t`` is what the caller counts (steps, epochs, samples), from 0, and need not be whole. Piece ``k``
holds where ``edges[k - 1] <= t < edges[k]``. A formula is written once and serves numbers (with ``math``, which is
fast) and arrays (with ``numpy``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wholebatch.core.errors import InputError, InputTypeError

Floats = npt.NDArray[np.float64]


class Schedule:
    """Base of all schedules: immutable, without state, equal where the arguments are equal.

    A subclass is a frozen dataclass that gives ``_edges`` and ``_piece``.
    """

    @property
    def end(self) -> float:
        """The progress at which the schedule has run its course and only repeats its last value.

        ``inf`` where that never happens, or where there is no course (a constant). Training that goes on long
        after it probably counts something else than the schedule does.
        """
        return math.inf

    @property
    def _edges(self) -> tuple[float, ...]:
        """The progress at which each piece but the first begins, increasing."""
        return ()

    def _piece(self, index: int, t: Any, xp: Any) -> Any:
        """The formula of one piece; ``t`` is a number where ``xp`` is math, a float64 array where it is numpy."""
        raise NotImplementedError

    @overload
    def __call__(self, t: float) -> float: ...
    @overload
    def __call__(self, t: Tensor) -> Tensor: ...
    @overload
    def __call__(self, t: npt.NDArray[Any]) -> Floats: ...
    def __call__(self, t: Any) -> Any:
        """Return the value at progress ``t``.

        A number gives a float. An array gives a float64 array, a tensor a float64 tensor on its device, of the same
        shape and elementwise (through the host; no gradient flows). Infinity is allowed.

        Raises:
            InputError: a progress is negative or NaN.
            InputTypeError: ``t`` is no number, array or tensor of them.
        """
        kind = type(t)
        if (kind is int or kind is float) and t >= 0:  # the call of every training step
            return self._at(t)
        return elementwise(t, self._at, self._over)

    def _at(self, t: float) -> float:
        """The value at one progress."""
        return self._piece(bisect_right(self._edges, t), t, math)

    def _over(self, t: Floats) -> Floats:
        """The values at each of a one-dimensional array of progresses."""
        values = np.empty_like(t)
        piece = np.searchsorted(np.asarray(self._edges, dtype=np.float64), t, side="right")
        for index in np.unique(piece):
            here = piece == index
            values[here] = self._piece(int(index), t[here], np)
        return values


def elementwise(t: Any, at: Callable[[float], float], over: Callable[[Floats], Floats]) -> Any:
    """Return ``at(t)`` of a number, ``over`` of an array or tensor of any shape; refuse everything else."""
    if isinstance(t, Tensor):
        host = t.detach().cpu()
        if host.is_complex():
            raise InputTypeError(f"a schedule needs real progress; got a tensor of {t.dtype}")
        return torch.from_numpy(elementwise(host.to(torch.float64).numpy(), at, over)).to(t.device)
    if isinstance(t, np.ndarray):
        if t.dtype.kind not in "biuf":
            raise InputTypeError(f"a schedule needs progress in numbers; got an array of dtype {t.dtype}")
        flat = t.reshape(-1).astype(np.float64)
        wrong = ~(flat >= 0)  # NaN compares false, too
        if wrong.any():
            raise _bad_progress(flat[wrong][0], f" at place {int(wrong.argmax())} of {flat.size}")
        return over(flat).reshape(t.shape)
    if not isinstance(t, Real):
        raise InputTypeError(
            f"a schedule is asked with a number, an array or a tensor of progress; got {type(t).__name__} {t!r:.60}. "
            "For a list, write np.array(list)"
        )
    plain = int(t) if isinstance(t, Integral) else float(t)
    if not plain >= 0:
        raise _bad_progress(plain)
    return at(plain)


def _bad_progress(value: float, where: str = "") -> InputError:
    return InputError(f"progress {value!r:.40}{where} cannot be; a schedule counts from 0 (the first step is t=0)")


def evaluate(schedule: Callable[[Any], Any], t: Any) -> Any:
    """Return the values of a schedule, or of any function of one number, at a number or at each of an array."""
    if isinstance(schedule, Schedule):
        return schedule._over(t) if isinstance(t, np.ndarray) else schedule._at(t)
    if isinstance(t, np.ndarray):
        return np.array([float(schedule(one)) for one in t.tolist()], dtype=np.float64)
    return float(schedule(t))


def end_of(schedule: Callable[[Any], Any]) -> float:
    """Return where a schedule ends; a plain function has no known end: ``inf``."""
    return schedule.end if isinstance(schedule, Schedule) else math.inf
