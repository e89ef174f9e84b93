"""wholebatch: ask for a batch size, get exactly that step, on whatever hardware you have.

The public names are loaded when they are first asked for (PEP 562), so that ``import wholebatch``
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from wholebatch.version import __version__

_HOME = {
    "Accumulator": "sums",
    "Mean": "sums",
    "Accuracy": "sums",
    "CosineScheduler": "schedule",
    "PolynomialScheduler": "schedule",
    "LinearScheduler": "schedule",
    "FactorScheduler": "schedule",
    "MultiFactorScheduler": "schedule",
    "SquareRootScheduler": "schedule",
    "TrapezoidScheduler": "schedule",
    "ConstantScheduler": "schedule",
    "Warmup": "schedule",
    "Joined": "schedule",
    "attach": "schedule",
    "scale_lr": "schedule",
    "Step": "step",
    "StepReport": "step",
    "GradientAccumulator": "step",
    "MicroBatches": "step",
    "WholeBatchLoss": "step",
    "convert_batchnorm": "step",
    "recompute": "step.recompute",
    "Plan": "step",
    "plan": "step",
    "train": "api",
    "evaluate": "api",
    "check_step": "verifying",
    "verify": "verifying",
    "StepCheck": "verifying",
    "History": "core.record",
    "Timer": "loop",
    "LivePlot": "display.liveplot",
    "plot": "display.plotting",
    "WholebatchError": "core.errors",
    "InputError": "core.errors",
    "InputTypeError": "core.errors",
    "BatchError": "core.errors",
    "LossError": "core.errors",
    "ConfigError": "core.errors",
    "DataError": "core.errors",
    "RunFolderError": "core.errors",
    "PeerError": "core.errors",
    "CheckpointError": "core.errors",
    "FencedError": "core.errors",
    "WrongStepError": "core.errors",
    "NonFiniteError": "core.errors",
    "OutOfMemoryError": "core.errors",
    "OutOfMemoryWarning": "core.errors",
    "PromiseWarning": "core.errors",
}
_MODULES = ("data", "models", "parallel")

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"wholebatch.{name}")
    if name not in _HOME:
        from wholebatch.core.errors import nearest

        raise AttributeError(f"module 'wholebatch' has no attribute {name!r}{nearest(name, __all__)}")
    value = getattr(import_module(f"wholebatch.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from wholebatch import data as data
    from wholebatch import models as models
    from wholebatch import parallel as parallel
