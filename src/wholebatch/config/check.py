"""Which values a configuration may have, beyond their types."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from wholebatch.config.layer import leaves
from wholebatch.config.schema import Config
from wholebatch.config.show import inline
from wholebatch.core.errors import ConfigError, nearest

_LARGEST = 2**31 - 1  # more samples than any batch; keeps every product far inside int64


def _at_least_1(value: Any) -> bool:
    return value is None or 1 <= value <= _LARGEST


def _not_negative(value: Any) -> bool:
    return value is None or value >= 0


def _reads(reader: str, text: str) -> bool:
    from wholebatch import checkpoint  # it needs torch, which most configurations can be checked without

    try:
        getattr(checkpoint, reader)(text)
    except ConfigError:
        return False
    return True


_COUNT = f"a whole number from 1 to {_LARGEST}"
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch_size": (lambda v: type(v) is int and _at_least_1(v), f"{_COUNT}, or a mapping such as {{0: 128, 10: 256}}"),
    "micro_batch": (lambda v: v == "auto" or (isinstance(v, int) and _at_least_1(v)), f"auto, or {_COUNT}"),
    "accumulation_steps": (_at_least_1, f"null, or {_COUNT}"),
    "micro_batch_tokens": (_at_least_1, f"null, or {_COUNT}"),
    "epochs": (_at_least_1, _COUNT),
    "seed": (lambda v: 0 <= v < 2**63, "a whole number from 0 to 2^63 - 1"),
    "lr": (lambda v: v > 0, "a number above 0"),
    "clip_norm": (lambda v: v is None or v > 0, "null, or a number above 0"),
    "channels_last": (lambda v: v == "auto" or isinstance(v, bool), "true, false or auto"),
    "threads": (_at_least_1, f"null, or {_COUNT}"),
    "device": (
        lambda v: re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", v) is not None,
        "auto, cpu, cuda, cuda:<number>, mps, or xpu",
    ),
    "checkpoint_every": (lambda v: v is None or _reads("Every", v), "null, or a number of steps, epochs, s, min or h"),
    "time_limit": (
        lambda v: v is None or _reads("seconds_of", v),
        "null, or a time such as 90 (seconds), 10 min or 2 h",
    ),
    "workers": (lambda v: 0 <= v <= 4096, "a whole number of processes, 0 to 4096"),
    "batch_lr_rule": (lambda v: v in (None, "linear", "sqrt"), "null, linear or sqrt"),
    "log_every": (_at_least_1, f"null, or {_COUNT}"),
    "digest_every": (_at_least_1, f"null, or {_COUNT}"),
    "run_dir": (lambda v: v is None or bool(v.strip()), "null, or the path of a folder"),
    "data.root": (lambda v: v is None or bool(v.strip()), "null, or the path of a folder"),
    "data.augment.max_shift": (_not_negative, "a number of pixels, 0 or more"),
    "data.augment.max_degrees": (lambda v: 0 <= v <= 180, "degrees from 0 to 180"),
    "data.augment.max_scale": (lambda v: 0 <= v < 1, "a number from 0 to below 1"),
    "data.augment.random_resized_crop": (lambda v: 0 <= v <= 1, "a share of the area from 0 (none) to 1"),
    "data.augment.crop_padding": (lambda v: 0 <= v <= _LARGEST, "a number of pixels, 0 or more"),
    "data.augment.callable": (
        lambda v: v is None or re.fullmatch(r"[^\W\d][\w.]*:[^\W\d][\w.]*", v) is not None,
        "null, or package.module:name",
    ),
    "data.augment.color_jitter": (
        lambda v: v is None or (len(v) in (3, 4) and min(v) >= 0 and (len(v) < 4 or v[3] <= 0.5)),
        "null, or [brightness, contrast, saturation, hue], 0 or more, the hue up to 0.5",
    ),
    "data.augment.cutout": (lambda v: 0 <= v <= _LARGEST, "a number of pixels, 0 or more"),
    "data.augment.mixup": (_not_negative, "a number, 0 (none) or more"),
    "data.augment.cutmix": (_not_negative, "a number, 0 (none) or more"),
    "schedule.warmup_steps": (_not_negative, "a whole number, 0 or more"),
    "schedule.warmup_begin_lr": (_not_negative, "a number, 0 or more"),
    "schedule.max_update": (_at_least_1, f"null, or {_COUNT}"),
    "schedule.final_lr": (_not_negative, "null, or a number, 0 or more"),
    "loss.label_smoothing": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "loss.temperature": (lambda v: 0 < v < math.inf, "a number more than 0"),
    "parallel.pipeline": (lambda v: 1 <= v <= _LARGEST, _COUNT),
    "parallel.shard": (lambda v: 1 <= v <= _LARGEST, _COUNT),
    "parallel.tensor": (lambda v: 1 <= v <= _LARGEST, _COUNT),
    "parallel.reshard": (lambda v: v in (None, "step", "layer"), "null, step or layer"),
    "parallel.plan": (lambda v: v is None or isinstance(v, (dict, str)), "null, or {layer: way}"),
    "parallel.data": (lambda v: v == "auto" or (isinstance(v, int) and _at_least_1(v)), f"auto, or {_COUNT}"),
}
_CHOICES = {
    "schedule_unit": ("step", "epoch"),
    "batch_size_unit": ("epoch", "samples"),
    "precision": ("fp32", "tf32", "bf16", "fp16", "bf16-true", "auto"),
    "data.augment.crop_mode": ("constant", "reflect"),
    "data.augment.callable_per": ("sample", "batch"),
    "parallel.engine": ("auto", "flat", "ddp"),
}


def expectation(key: str) -> str | None:
    """Return in words which values ``key`` may have, or None where any value of its type will do."""
    return _RULES[key][1] if key in _RULES else " or ".join(_CHOICES[key]) if key in _CHOICES else None


def check(config: Config) -> None:
    """Raise where a value cannot be used.

    Raises:
        ConfigError: the message has the key, the value, what was expected, and the nearest choice.
    """
    values = dict(leaves(asdict(config)))
    for key, value in values.items():
        for number in _floats(value):
            if not math.isfinite(number):
                raise ConfigError(f"{key}={inline(value)}: expected a finite number")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{key}={inline(value)}: text with a NUL character cannot be used")
        if key in _RULES and not _RULES[key][0](value):
            raise ConfigError(f"{key}={inline(value)}: expected {_RULES[key][1]}")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise ConfigError(
                f"{key}={inline(value)}: expected {' or '.join(_CHOICES[key])}{nearest(value, _CHOICES[key])}"
            )
    _check_normalize(config.data.normalize)
    if config.bitwise and config.micro_batch == "auto" and config.accumulation_steps is None:
        raise ConfigError(
            "bitwise=true needs the number of samples of a micro-batch, which is part of what the bits "
            "follow from; say micro_batch=32, for example"
        )
    if config.threads is not None and not config.bitwise:
        raise ConfigError(f"threads={config.threads} belongs to bitwise=true; otherwise set OMP_NUM_THREADS")
    sizes = config.sizes()
    if sizes.largest is None or sizes.largest > _LARGEST:
        raise ConfigError(f"batch_size={inline(config.batch_size)}: expected {_RULES['batch_size'][1]}")
    if config.accumulation_steps is not None and config.accumulation_steps > sizes.first:
        raise ConfigError(
            f"accumulation_steps={config.accumulation_steps}: a batch of {sizes.first} samples cannot be cut "
            f"into more passes than samples; expected 1 to {sizes.first}"
        )


def _check_normalize(value: Any) -> None:
    """``auto``, nothing, or two numbers, or two lists of one length, the deviations positive."""
    if value is None or value == "auto":
        return
    expected = "expected auto, null, or {mean: …, std: …}, numbers or lists with one per channel, std above 0"
    if isinstance(value, dict) and set(value) == {"mean", "std"}:
        mean, std = (item if isinstance(item, list) else [item] for item in (value["mean"], value["std"]))
        numbers = all(
            isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in (*mean, *std)
        )
        if numbers and len(mean) == len(std) > 0 and min(std) > 0:
            return
    raise ConfigError(f"data.normalize={inline(value)}: {expected}")


def _floats(value: Any) -> Iterator[float]:
    """The floats of a value: of itself, or of a list."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float):
            yield item
