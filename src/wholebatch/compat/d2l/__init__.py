"""The names of Dive into Deep Learning's package ``d2l`` for PyTorch, thin over this library's own parts.

Code written for the book runs after its import line has become ``from wholebatch.compat import d2l``. The names are
those of the English edition 1.0 and the Chinese edition 2.0, as far as ``__all__`` lists them; where the editions
differ, both ways are understood. docs/coming-from-d2l.md says what was mended, and what to use natively.

Zhang, Lipton, Li, Smola: Dive into Deep Learning, Cambridge University Press 2023, https://d2l.ai. Names, arguments and
behaviour are those of its package (https://github.com/d2l-ai/d2l-en, https://github.com/d2l-ai/d2l-zh); the code is
this library's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from wholebatch.compat.d2l.accumulator import Accumulator
from wholebatch.compat.d2l.animator import Animator
from wholebatch.compat.d2l.devices import cpu, gpu, num_gpus, split_batch, try_all_gpus, try_gpu
from wholebatch.compat.d2l.evaluation import accuracy, evaluate_accuracy, evaluate_accuracy_gpu, evaluate_loss
from wholebatch.compat.d2l.fashion import get_dataloader_workers, get_fashion_mnist_labels, load_data_fashion_mnist
from wholebatch.compat.d2l.figures import plot, pyplot, set_axes, set_figsize, show_images, use_svg_display
from wholebatch.compat.d2l.layers import Residual, resnet18
from wholebatch.compat.d2l.linear import grad_clipping, linreg, load_array, sgd, squared_loss, synthetic_data
from wholebatch.compat.d2l.names import ALIASES, INSTEAD, METHODS, MODULES, method, numpy
from wholebatch.compat.d2l.schedulers import CosineScheduler, FactorScheduler, MultiFactorScheduler, SquareRootScheduler
from wholebatch.compat.d2l.timer import Timer
from wholebatch.compat.d2l.training import (
    predict_ch3,
    train_batch_ch13,
    train_ch3,
    train_ch6,
    train_ch13,
    train_epoch_ch3,
)
from wholebatch.core.errors import nearest

__all__ = [
    "Accumulator",
    "Animator",
    "CosineScheduler",
    "FactorScheduler",
    "MultiFactorScheduler",
    "Residual",
    "SquareRootScheduler",
    "Timer",
    "accuracy",
    "cpu",
    "evaluate_accuracy",
    "evaluate_accuracy_gpu",
    "evaluate_loss",
    "get_dataloader_workers",
    "get_fashion_mnist_labels",
    "gpu",
    "grad_clipping",
    "linreg",
    "load_array",
    "load_data_fashion_mnist",
    "num_gpus",
    "numpy",
    "plot",
    "predict_ch3",
    "resnet18",
    "set_axes",
    "set_figsize",
    "sgd",
    "show_images",
    "split_batch",
    "squared_loss",
    "synthetic_data",
    "train_batch_ch13",
    "train_ch3",
    "train_ch6",
    "train_ch13",
    "train_epoch_ch3",
    "try_all_gpus",
    "try_gpu",
    "use_svg_display",
]
__all__ += ["plt", *ALIASES, *METHODS, *MODULES]


def __getattr__(name: str) -> Any:
    if name == "plt":
        return pyplot()
    if name in MODULES:
        return import_module(MODULES[name])
    if name in ALIASES:
        return getattr(torch, ALIASES[name])
    if name in METHODS:
        value = globals()[name] = method(name)
        return value
    if name in INSTEAD:
        raise AttributeError(f"wholebatch.compat.d2l does not cover {name!r}: {INSTEAD[name]}")
    raise AttributeError(
        f"wholebatch.compat.d2l does not cover {name!r}{nearest(name, __all__)}; it has {', '.join(sorted(__all__))}"
    )


def __dir__() -> list[str]:
    return sorted(__all__)
