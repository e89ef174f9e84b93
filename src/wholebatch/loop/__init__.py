"""The loops: train, evaluate, their metrics and records, and the timer."""

from wholebatch.loop.again import LastStep
from wholebatch.loop.evaluate import evaluate
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.timer import Timer
from wholebatch.loop.train import train

__all__ = ["LastStep", "Metrics", "Timer", "evaluate", "train"]
