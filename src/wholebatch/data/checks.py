"""Checks of what loaders are given."""

from __future__ import annotations

import operator
from typing import Any

from wholebatch.core.errors import DataError, InputTypeError


def positive(name: str, value: Any, of: str = "samples") -> int:
    """Return ``value``, a number ``of`` something, as an int of at least 1.

    Raises:
        InputTypeError: it is no whole number (a bool is none).
        DataError: it is below 1.
    """
    if isinstance(value, bool):
        raise InputTypeError(f"{name} must be a whole number of {of}, got {value}")
    try:
        number = operator.index(value)
    except TypeError:
        raise InputTypeError(f"{name} must be a whole number of {of}, got {value!r} ({type(value).__name__})") from None
    if number < 1:
        raise DataError(f"{name} must be at least 1, got {number}")
    return number


def restore_place(state: Any, expected: dict[str, Any]) -> tuple[int, int]:
    """Return (epoch, consumed) of a loader's state, refusing one of another order.

    Raises:
        DataError: entries are missing or no whole numbers, or one of ``expected`` differs.
    """
    try:
        epoch, consumed = operator.index(state["epoch"]), operator.index(state.get("consumed", 0))
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"a loader's state holds whole numbers epoch and consumed, got {state!r:.100}") from None
    for name, value in expected.items():
        if name in state and state[name] != value:
            raise DataError(
                f"this state is of a loader with {name}={state[name]}, this loader has {name}={value}; "
                "the order of the samples would differ, so make the loader as it was"
            )
    if epoch < 0 or consumed < 0 or consumed > expected.get("samples", consumed):
        raise DataError(
            f"epoch {epoch} with {consumed} samples consumed is no place in {expected.get('samples')} samples"
        )
    return epoch, consumed


def on_error_policy(on_error: Any) -> str:
    """Return ``on_error``, which says what becomes of an image that cannot be read.

    Raises:
        DataError: it is neither "raise" nor "skip".
    """
    if on_error not in ("raise", "skip"):
        raise DataError(f"on_error is 'raise' or 'skip', got {on_error!r}")
    return str(on_error)


def whole_number(name: str, value: Any, of: str) -> int:
    """Return ``value``, a number ``of`` something, as an int of at least 0.

    Raises:
        InputTypeError: it is no whole number (a bool is none).
        DataError: it is below 0.
    """
    return positive(name, value, of) if value != 0 or isinstance(value, bool) else 0
