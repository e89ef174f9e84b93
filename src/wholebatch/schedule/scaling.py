"""Rules that carry a learning rate from one batch size to another."""

from __future__ import annotations

import math

from wholebatch.core.errors import ConfigError, nearest
from wholebatch.schedule.arguments import number

_RULES = {"linear": lambda ratio: ratio, "sqrt": math.sqrt}


def scale_lr(lr: float, *, batch_size: float, reference: float = 256, rule: str = "linear") -> float:
    """Return the learning rate for ``batch_size``, given that ``lr`` is right for batches of ``reference`` samples.

    ``linear``: lr · batch_size / reference, for SGD, with a warm-up (Goyal et al. 2017, arXiv:1706.02677, section 2.1).
    ``sqrt``: lr · √(batch_size / reference), for adaptive optimizers such as Adam (Krizhevsky 2014, arXiv:1404.5997;
    Malladi et al. 2022, arXiv:2205.10287). Both are rules of thumb that fail for very large batches.

    Args:
        lr: the rate found at ``reference``.
        batch_size: samples of one optimizer step, over all micro-batches and processes.
        reference: samples of one step for which ``lr`` was found.
        rule: "linear" or "sqrt".

    Raises:
        ConfigError: an unknown rule, a batch size of 0, or a number that is negative or not finite.
        InputTypeError: an argument is no number.

    >>> scale_lr(0.1, batch_size=4096, reference=256)
    1.6
    >>> scale_lr(0.1, batch_size=4096, reference=256, rule="sqrt")
    0.4
    """
    lr = float(number("scale_lr", "lr", lr))
    for name, size in {"batch_size": batch_size, "reference": reference}.items():
        if number("scale_lr", name, size) == 0:
            raise ConfigError(f"scale_lr got {name}=0; give the samples of one optimizer step, at least 1")
    if rule not in _RULES:
        raise ConfigError(
            f"scale_lr knows no rule {rule!r}{nearest(str(rule), _RULES)}; the rules are {', '.join(_RULES)}"
        )
    return lr * float(_RULES[rule](batch_size / reference))
