"""What an error usually means: the gradient that was found, against what the usual mistakes give for that window."""

from __future__ import annotations

import math
from collections.abc import Iterator

from wholebatch.verifying.exact import Vector, Window, difference, inner, norm, scaled

_NEAR = 1e-3  # how near a gradient must be to a mistake's, relative to it, to be called by its name

_LEFT = "the gradient of the window before is still in it: zero_grad is missing"
_UNEQUAL = "unequal micro-batches weigh alike (a mean of means)"


def meaning(found: Vector, window: Window, *, configured: int, before: Vector | None, clip_norm: float | None) -> str:
    """Say what would give ``found``.

    Args:
        found: the gradient that the optimizer found.
        window: what the micro-batches come to.
        configured: how many micro-batches the window given had.
        before: the gradient found in the window before, on the same copy.
        clip_norm: the norm to which the loop clips.
    """
    if not all(math.isfinite(float(part.abs().sum())) for part in found):
        if any(weight == 0 for weight in window.weights):
            return "not finite: a micro-batch without any label that counts has a mean of 0 / 0"
        return "not finite"
    if norm(found) == 0:
        return "the gradient found is zero: nothing of these samples is learned"
    known = _named(found, window, configured)
    if known is None and before is not None:
        rest = [a - b for a, b in zip(found, before, strict=True)]
        if _near(rest, window.exact):
            return _LEFT
        known = _named(rest, window, configured)
        known = known and f"{_LEFT}; besides, {known}"
    return known or _by_direction(found, window, clip_norm)


def _named(found: Vector, window: Window, configured: int) -> str | None:
    return next((text for vector, text in _mistakes(window, configured) if _near(found, vector)), None)


def _near(found: Vector, vector: Vector) -> bool:
    size = norm(vector)
    return size > 0 and difference(found, vector) <= _NEAR * size


def _mistakes(window: Window, configured: int) -> Iterator[tuple[Vector, str]]:
    count = window.pieces * window.processes
    uneven = len(set(window.weights)) > 1
    also = f", and {_UNEQUAL}" if uneven else ""
    if count > 1:
        yield scaled(window.means, 1 / count), _UNEQUAL
        yield window.means, f"not divided by the number of micro-batches ({count}){also}"
        yield scaled(window.means, 1 / window.pieces), f"summed over {window.processes} processes without dividing"
    if window.pieces != configured:
        short = "shorter" if window.pieces < configured else "longer"
        text = f"divided by the configured number of steps ({configured}) although the window was {short}"
        yield scaled(window.means, 1 / configured / window.processes), text + also
        every = "not divided by the number of micro-batches, as if the window were one of the configured length"
        yield scaled(window.means, configured / count), every
    if count > 1:
        yield scaled(window.means, 1 / count**2), f"divided by the number of micro-batches ({count}) twice{also}"
    yield scaled(window.exact, window.weight), "the sum of the losses is not divided by what counts"
    if window.samples != window.weight:
        text = "divided by the number of samples, masked or weighted ones included, and not by what counts"
        yield scaled(window.exact, window.weight / window.samples), text
        text = "the micro-batches' means are weighted by samples, not by what counts in them"
        yield window.by_samples, text
    if count > 1:
        text = "only the last micro-batch is in it: the others were thrown away (zero_grad inside the window?)"
        yield window.last, text
        yield scaled(window.last, 1 / window.pieces), text
        yield scaled(window.last, 1 / configured), text


def _by_direction(found: Vector, window: Window, clip_norm: float | None) -> str:
    """What the factor alone says."""
    square = inner(window.exact, window.exact)
    factor = inner(found, window.exact) / square if square else math.nan
    if math.isnan(factor):
        return "these samples count nothing, but the weights were moved"
    along = difference(found, scaled(window.exact, factor)) <= _NEAR * norm(found)
    if factor < 0:
        return "the step goes up the loss instead of down"
    if not along:
        if clip_norm is not None:
            return "another direction: clipped before the whole was summed, or samples weigh otherwise"
        return "another direction: samples weigh otherwise than in the whole batch, or some are missing"
    if factor < 1:
        said = "" if clip_norm is not None else "; if the loop clips, say clip_norm="
        return f"the exact direction, scaled by {factor:.3g}: divided by too much{said}"
    return f"the exact direction, scaled by {factor:.3g}: divided by too little"
