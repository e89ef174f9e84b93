"""The loops: train, evaluate, their metrics and records, the last step made once more, and the timer."""

from wholebatch.loop.again import LastStep, other_micro_batch
from wholebatch.loop.evaluate import evaluate
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.timer import Timer
from wholebatch.loop.train import train

__all__ = ["LastStep", "Metrics", "Timer", "evaluate", "other_micro_batch", "train"]
