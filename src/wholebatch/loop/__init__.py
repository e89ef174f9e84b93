"""The loops: train, evaluate, their metrics and records, saving and going on, the last step once more, the timer."""

from wholebatch.loop.again import LastStep, other_micro_batch
from wholebatch.loop.alike import facts_of_start
from wholebatch.loop.batch_rate import BatchRate
from wholebatch.loop.evaluate import evaluate
from wholebatch.loop.facts import facts_of
from wholebatch.loop.keeper import Keeper
from wholebatch.loop.metrics import Metrics
from wholebatch.loop.run import Beginning
from wholebatch.loop.timer import Timer
from wholebatch.loop.train import train

__all__ = [
    "BatchRate",
    "Beginning",
    "Keeper",
    "LastStep",
    "Metrics",
    "Timer",
    "evaluate",
    "facts_of",
    "facts_of_start",
    "other_micro_batch",
    "train",
]
