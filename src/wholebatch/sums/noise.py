"""The gradient noise scale, from norms that a step has anyway.

With G the mean gradient of all data and Σ the covariance of one sample's gradient, the *simple noise scale* is
tr(Σ) / |G|², in samples (McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", arXiv:1812.06162).
The mean gradient of b samples has E|g|² = |G|² + tr(Σ) / b, so two sizes b < B tell both (appendix A.1), unbiased::

    |G|²  ≈ (B |g_B|² − b |g_b|²) / (B − b)
    tr(Σ) ≈ (|g_b|² − |g_B|²) / (1/b − 1/B)

Their ratio is not unbiased where it is taken in every step, so it is the ratio of two weighted sums over steps. A
step counts by v = 1 − b/B, the share of the whole that the small one is not part of: where that is hardly anything,
both estimates are hardly anything but noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from wholebatch.core.errors import InputError

DECAY = 0.99  # per measured step: the sums are of about the last hundred of them
LEAST = 10  # measured steps until there is something to say
EVERY_ONE = 12  # steps at the beginning that are all measured
EVERY = 16  # of those after them one in so many: norms cost a small model more than 2 % of a step
_AT_ONCE = 256  # norms that wait on the device before they are read together
_SUMS = ("steps", "v", "t", "g", "vv", "vt", "vg", "tt", "tg", "gg")


def pair_estimate(small: float, big: float, first: float, samples: float) -> tuple[float, float]:
    """Return the unbiased (|G|², tr(Σ)) of two squared norms of mean gradients.

    Args:
        small: |g_b|², of the first ``first`` samples.
        big: |g_B|², of all ``samples``.
        first: b, of which there are fewer than ``samples``.
        samples: B.

    >>> pair_estimate(small=5.0, big=2.0, first=2, samples=8)
    (1.0, 8.0)
    """
    return (samples * big - first * small) / (samples - first), (small - big) / (1 / first - 1 / samples)


class NoiseScale:
    """An estimate of the gradient noise scale, in samples, over about the last hundred steps that were added.

    ``windows`` counts the steps that were made, whether they were added or not. What is added may be on a device: it
    is read when somebody asks, or many at a time. ``unmeasured`` says why nothing was added, where that is so.

    >>> noise = NoiseScale()
    >>> for step in range(20):
    ...     noise.add(small=(5 + step % 2) ** 0.5, big=2**0.5, first=2, samples=8)
    >>> round(noise.value, 1), [round(end, 1) for end in noise.interval]
    (11.2, [9.5, 13.3])
    """

    unmeasured = "it takes several micro-batches or processes, and a loss that adds up over samples"

    def __init__(self, decay: float = DECAY) -> None:
        self.decay = decay
        self.windows = 0
        self._sums = dict.fromkeys(_SUMS, 0.0)
        self._waiting: list[tuple[float | Tensor, float | Tensor, float, float]] = []

    def add(self, small: float | Tensor, big: float | Tensor, first: float, samples: float) -> None:
        """Add a step: two norms of mean gradients, and of how many samples each is.

        A step whose first samples are all of them, or whose norms are not finite, says nothing and is passed over.

        Args:
            small: the 2-norm of the mean gradient of the first samples, a number or a scalar on any device.
            big: that of the whole batch.
            first: how many samples the small one is of.
            samples: how many the whole batch has.
        """
        if 0 < first < samples:
            self._waiting.append((small, big, first, samples))
            if len(self._waiting) >= _AT_ONCE:
                self._fold()

    @property
    def due(self) -> bool:
        """Whether the present step is to be measured: the first ones are, and one of sixteen after them."""
        return self.windows < EVERY_ONE or self.windows % EVERY == 0

    @property
    def measured(self) -> bool:
        """Whether any step was added."""
        self._fold()
        return self._sums["steps"] > 0

    @property
    def value(self) -> float | None:
        """The estimate, in samples; None until it is known. The host waits for the device."""
        interval = self.interval
        return None if interval is None else self._sums["t"] / self._sums["g"]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the noise scale is with 95 % confidence, if gradients did not change; None until it is known.

        Fieller's interval of a ratio of two means, from the scatter of the steps (Fieller 1954, "Some Problems in
        Interval Estimation"). It is unbounded, and the scale not known, while |G|² cannot be told from 0.
        """
        self._fold()
        s = self._sums
        if s["steps"] < LEAST or s["g"] <= 0:
            return None
        many = s["v"] ** 2 / s["vv"]  # as many steps of one weight would scatter alike
        t, g = s["t"] / s["v"], s["g"] / s["v"]
        # Student's 97.5 % point, to 2 % from 9 degrees of freedom on, and the scatter of the sums
        z = (1.96 + 2.4 / (many - 1)) ** 2 * many / (many - 1)
        tt = z * (s["tt"] - 2 * t * s["vt"] + t * t * s["vv"])
        gg = z * (s["gg"] - 2 * g * s["vg"] + g * g * s["vv"])
        tg = z * (s["tg"] - t * s["vg"] - g * s["vt"] + t * g * s["vv"])
        a, b, c = s["g"] ** 2 - gg, s["t"] * s["g"] - tg, s["t"] ** 2 - tt
        if a <= 0:
            return None
        root = math.sqrt(max(0.0, b * b - a * c))
        return max(0.0, (b - root) / a), max(0.0, (b + root) / a)

    def copy(self) -> Self:
        """Return it as it is now; nothing is read."""
        other = type(self)(self.decay)
        other.unmeasured = self.unmeasured
        other.windows, other._sums, other._waiting = self.windows, dict(self._sums), list(self._waiting)
        return other

    def state_dict(self) -> dict[str, float]:
        """Return the sums; the host waits for the device."""
        self._fold()
        return {"decay": self.decay, "windows": self.windows, **self._sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from sums that :meth:`state_dict` gave.

        Raises:
            InputError: it gave something else.
        """
        missing = [name for name in ("decay", "windows", *_SUMS) if name not in state]
        if missing:
            raise InputError(f"this is no state of a noise scale: {', '.join(missing)} missing")
        self.decay, self.windows, self._waiting = float(state["decay"]), int(state["windows"]), []
        self._sums = {name: float(state[name]) for name in _SUMS}

    def sentence(self) -> str:
        """Say in one line what the estimate is, and what it is good for.

        >>> NoiseScale().sentence()
        'gradient noise scale: not known yet (too few steps, or too much noise for an estimate)'
        """
        found, interval = self.value, self.interval
        if self.windows and not self.measured:
            return f"gradient noise scale: not measured ({self.unmeasured})"
        if found is None or interval is None:
            return "gradient noise scale: not known yet (too few steps, or too much noise for an estimate)"
        low, high = (_rounded(end) for end in interval)
        return (
            f"gradient noise scale about {_rounded(found)} ({low}–{high}), an estimate: "
            "batches well under it usually still gain from doubling"
        )

    def _fold(self) -> None:
        """Read what waits, and add it."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        norms = _read([norm for small, big, *_ in waiting for norm in (small, big)])
        for (_, _, first, samples), small, big in zip(waiting, norms[::2], norms[1::2], strict=True):
            if math.isfinite(small) and math.isfinite(big):
                self._add(small * small, big * big, first, samples)

    def _add(self, small: float, big: float, first: float, samples: float) -> None:
        v = 1 - first / samples
        g, t = (v * estimate for estimate in pair_estimate(small, big, first, samples))
        once = {"v": v, "t": t, "g": g}
        twice = {"vv": v * v, "vt": v * t, "vg": v * g, "tt": t * t, "tg": t * g, "gg": g * g}
        for name, value in once.items():
            self._sums[name] = self._sums[name] * self.decay + value
        for name, value in twice.items():
            self._sums[name] = self._sums[name] * self.decay**2 + value
        self._sums["steps"] += 1

    def __repr__(self) -> str:
        return f"NoiseScale(value={self.value}, interval={self.interval})"


def _read(norms: list[float | Tensor]) -> list[float]:
    """Numbers, in as few reads as there are devices."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for norm in norms:
        if isinstance(norm, Tensor):
            by_device.setdefault(norm.device, []).append(norm.detach().reshape(()))
    read = {device: iter(torch.stack(some).tolist()) for device, some in by_device.items()}
    return [next(read[norm.device]) if isinstance(norm, Tensor) else float(norm) for norm in norms]


def _rounded(number: float) -> str:
    """Two significant digits, with commas.

    >>> _rounded(2134.5), _rounded(3.14159), _rounded(0)
    ('2,100', '3.1', '0')
    """
    if number == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(number)))
    return f"{round(number, digits):,.{max(0, digits)}f}"
