"""A schedule alone, from the text of a configuration's group ``schedule``."""

from __future__ import annotations

import dataclasses

from wholebatch.config.build import check_names, make_schedule
from wholebatch.config.check import check
from wholebatch.config.layer import normalise
from wholebatch.config.load import merged
from wholebatch.config.schema import Schedule, field_names
from wholebatch.config.source import read_yaml
from wholebatch.core.errors import ConfigError, nearest
from wholebatch.schedule import SHAPES, ConstantScheduler
from wholebatch.schedule import Schedule as Rates

_RATE = ("base_lr", "lr")  # either says the rate that the schedule starts from
_UNIT = ("schedule_unit", "unit")


def lone_schedule(text: str) -> tuple[Rates, str, str]:
    """Return the schedule that ``text`` says, its shape's name, and what it counts ("step" or "epoch").

    ``text`` is a YAML mapping with the keys of the group ``schedule``, and ``lr`` (or ``base_lr``) and
    ``schedule_unit`` beside them; a name alone is a shape.

    >>> lone_schedule("{shape: cosine, max_update: 20, base_lr: 0.3, warmup_steps: 5}")[0](5)
    0.3

    Raises:
        ConfigError: it is no such mapping, a key or shape is unknown (the nearest is named), or a value is missing or
            impossible.
    """
    source = "--schedule"
    said = read_yaml(text if text.strip().startswith("{") or ":" in text else f"{{shape: {text}}}", source)
    values: dict[str, object] = {}
    for key, names in (("lr", _RATE), ("schedule_unit", _UNIT)):
        for name in names:
            if name in said:
                if key in values:
                    raise ConfigError(f"{source}: {names[0]} and {names[1]} say the same; give one of them")
                values[key] = said.pop(name)
    _refuse_strangers(said, source)
    values["schedule"] = said
    config = merged(normalise(values, source), source)
    check(config)
    check_names(config)
    shape, end = config.schedule.shape, config.schedule.max_update
    planned = any(field.name == "max_update" for field in dataclasses.fields(SHAPES[shape]))  # type: ignore[arg-type]
    if planned and end is None:
        raise ConfigError(f"{source}: {shape} also needs max_update, since no training says where it ends")
    made = make_schedule(config, end or 1)
    return made or ConstantScheduler(config.lr), shape, config.schedule_unit


def _refuse_strangers(said: dict[str, object], source: str) -> None:
    """Raise where a key is neither of the group nor of any shape; what one shape takes is checked by its name."""
    arguments = {field.name for kind in SHAPES.values() for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = {*field_names(Schedule), *arguments, *_RATE, *_UNIT}
    for key in said:
        if key not in known:
            hint = nearest(str(key), known) or f"; the keys are {', '.join(sorted(known))}"
            raise ConfigError(f"{source}: there is no key {key!r}{hint}")
