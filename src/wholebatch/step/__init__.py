"""One exact optimizer step: the loss contract, cutting, summing gradients, keyed dropout."""

from wholebatch.step.coupled import WholeBatchLoss
from wholebatch.step.gradient import GradientAccumulator
from wholebatch.step.grouped_norm import convert_batchnorm
from wholebatch.step.plan import Plan, plan
from wholebatch.step.report import StepReport
from wholebatch.step.step import Step
from wholebatch.step.window import MicroBatches

__all__ = [
    "GradientAccumulator",
    "MicroBatches",
    "Plan",
    "Step",
    "StepReport",
    "WholeBatchLoss",
    "convert_batchnorm",
    "plan",
]
