"""Exact sums: ``Accumulator`` (named sums), ``Mean`` (a weighted mean) and ``Accuracy`` (class counts).

All three hold float64 sums and int64 counts on the values' device, add without reading the host, and
divide only when they are read; what they share (merging, states, processes) is in ``additive``. ``NoiseScale``
estimates the gradient noise scale from weighted sums over steps.
"""

from wholebatch.sums.accumulator import Accumulator
from wholebatch.sums.accuracy import Accuracy
from wholebatch.sums.mean import Mean
from wholebatch.sums.noise import NoiseScale

__all__ = ["Accumulator", "Accuracy", "Mean", "NoiseScale"]
