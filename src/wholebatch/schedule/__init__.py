"""The learning rate as a pure function of progress, applied to an optimizer; rules for batch sizes.

The shapes are :class:`CosineScheduler`, :class:`PolynomialScheduler`, :class:`LinearScheduler`,
:class:`TrapezoidScheduler` (planned for a length), :class:`FactorScheduler`, :class:`MultiFactorScheduler`,
:class:`SquareRootScheduler` and :class:`ConstantScheduler` (open-ended). :class:`Warmup` and :class:`Joined`
compose them or any function of progress, :func:`attach` makes them a torch ``LRScheduler``, :func:`build` makes
one by the name of its shape (:data:`SHAPES`), and :func:`scale_lr` carries a rate from one batch size to another.
"""

from wholebatch.schedule.attached import Attached, attach
from wholebatch.schedule.compose import Joined, Warmup
from wholebatch.schedule.named import SHAPES, build
from wholebatch.schedule.open_ended import ConstantScheduler, FactorScheduler, MultiFactorScheduler, SquareRootScheduler
from wholebatch.schedule.piecewise import Schedule
from wholebatch.schedule.planned import CosineScheduler, LinearScheduler, PolynomialScheduler, TrapezoidScheduler
from wholebatch.schedule.scaling import scale_lr

__all__ = [
    "SHAPES",
    "Attached",
    "ConstantScheduler",
    "CosineScheduler",
    "FactorScheduler",
    "Joined",
    "LinearScheduler",
    "MultiFactorScheduler",
    "PolynomialScheduler",
    "Schedule",
    "SquareRootScheduler",
    "TrapezoidScheduler",
    "Warmup",
    "attach",
    "build",
    "scale_lr",
]
