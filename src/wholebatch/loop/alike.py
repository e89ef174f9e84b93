"""What processes that share a training are compared by at its start, beside what the result depends on."""

from __future__ import annotations

from typing import Any

from wholebatch.step import Step
from wholebatch.step.alike import facts_of_training


def facts_of_start(step: Step, data: Any, eval_data: Any) -> dict[str, Any]:
    """Return what is compared beside :func:`wholebatch.loop.facts_of`: parameters and their order, the two loaders."""
    return {
        **facts_of_training(step.model, step.optimizer),
        "seed": step.seed,
        "training data": _of_data(data),
        "evaluation data": _of_data(eval_data),
    }


def _of_data(loader: Any) -> dict[str, Any]:
    if loader is None:
        return {"length": 0}
    classes = getattr(loader.dataset, "classes", None)
    return {
        "length": loader.samples,
        "batch_size": loader.batch_size,
        "classes": None if classes is None else [str(name) for name in classes],
        "seed": getattr(loader, "seed", None),
    }
