"""Layers of settings: a recipe, then files, then the command line; each overrides the ones before it.

Two rules go beyond "the later one wins". A layer that names another model (optimizer, schedule, …)
drops what earlier layers said about the old one, whose arguments mean nothing to the new. And
``micro_batch``, ``accumulation_steps`` and ``micro_batch_tokens`` say the same, so the later layer's word counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from wholebatch.config.schema import NAMED_BY, Augment, Config, dotted_keys, field_names, is_open, subgroups
from wholebatch.config.show import inline
from wholebatch.core.errors import ConfigError, nearest

_NOTHING: dict[str, dict[str, Any]] = {
    "schedule": {"shape": "constant"},
    "data.augment": dataclasses.asdict(Augment()),
}  # what null stands for, where a whole group may be null
_CUTS = ("micro_batch", "accumulation_steps", "micro_batch_tokens")
_ELSEWHERE = {"optimizer.lr": "lr", "schedule.base_lr": "lr", "schedule.lr": "lr", "schedule.unit": "schedule_unit"}


def normalise(values: Mapping[Any, Any], source: str, group: type = Config, prefix: str = "") -> dict[str, Any]:
    """Return ``values`` in the shape of the schema: short forms written out, unknown keys refused.

    >>> normalise({"optimizer": {"name": "adamw", "eps": 1e-6}, "model": "lenet"}, "an example")
    {'optimizer': {'name': 'adamw', 'arguments': {'eps': 1e-06}}, 'model': {'name': 'lenet'}}

    Raises:
        ConfigError: a key is unknown (the message names the nearest), or a group is no mapping.
    """
    known, inner, result = field_names(group), subgroups(group), {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if path in _ELSEWHERE:
            raise ConfigError(
                f"{source}: {path} is said by {_ELSEWHERE[path]}; write {_ELSEWHERE[path]}={inline(value)}"
            )
        if key in inner:
            result[key] = normalise(_as_mapping(value, path, source), source, inner[key], f"{path}.")
        elif value == "???":  # OmegaConf's mark of a missing value, which it would pass over
            raise ConfigError(f"{source}: {path} has no value; write {path}=value")
        elif key in known:
            result[key] = value
        elif is_open(group) and isinstance(key, str) and key.isidentifier() and key != "arguments":
            result.setdefault("arguments", {})[key] = value
        else:
            raise ConfigError(f"{source}: there is no key {path!r}{_hint(path, prefix, known)}")
    return result


def _as_mapping(value: Any, path: str, source: str) -> Mapping[Any, Any]:
    """The mapping that a group's value stands for: ``lenet`` is ``{name: lenet}``."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str) and path in NAMED_BY:
        return {NAMED_BY[path]: value}
    if value is None and path in _NOTHING:
        return _NOTHING[path]
    expected = f"a name or a mapping such as {{{NAMED_BY[path]}: …}}" if path in NAMED_BY else "a mapping"
    raise ConfigError(f"{source}: {path}={inline(value)}: expected {expected}")


def _hint(path: str, prefix: str, siblings: list[str]) -> str:
    """The repair for an unknown key: the key elsewhere of this very name, or the nearest one."""
    leaf = path.rpartition(".")[2].replace("-", "_")
    elsewhere = [key for key in dotted_keys() if key.rpartition(".")[2] == leaf]
    if elsewhere:
        return f"; did you mean {elsewhere[0]!r}?"
    beside = nearest(leaf, siblings)
    if beside:
        return beside.replace("mean '", f"mean '{prefix}")
    return nearest(path, dotted_keys()) or "; 'wholebatch config show' lists the keys"


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all that normalised ``values`` say.

    >>> list(leaves({"lr": 0.1, "model": {"arguments": {"width": 8}}}))
    [('lr', 0.1), ('model.width', 8)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and key == "arguments":
            yield from ((f"{prefix}{name}", item) for name, item in value.items())
        elif isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def command_line(overrides: Iterable[tuple[list[str], Any]], source: str) -> dict[str, Any]:
    """Return one layer that holds all ``overrides`` (key cut at its dots, value).

    Raises:
        ConfigError: a key is unknown, or given twice with two values.
    """
    layer: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for parts, value in overrides:
        empties = value is None and ".".join(parts) in _NOTHING  # a clean slate, which later settings may fill
        for part in reversed(parts):
            value = {part: value}
        values = normalise(value, source)
        for key, item in [] if empties else leaves(values):
            if key in said and said[key] != item:
                raise ConfigError(
                    f"{source}: {key} is given twice, as {inline(said[key])} and {inline(item)}; give it once"
                )
            said[key] = item
        layer = _merge(layer, values)
    return layer


def stack(layers: Iterable[Mapping[str, Any]], source: Iterable[str]) -> dict[str, Any]:
    """Return what normalised ``layers`` say together, the later ones overriding; ``source`` names each.

    Raises:
        ConfigError: one layer gives two of ``micro_batch``, ``accumulation_steps`` and ``micro_batch_tokens``.
    """
    result: dict[str, Any] = {}
    for layer, name in zip(layers, source, strict=True):
        cuts = [key for key in _CUTS if layer.get(key) not in ("auto", None)]
        if len(cuts) > 1:
            said = " and ".join(f"{key}={layer[key]}" for key in cuts[:2])
            raise ConfigError(f"{name}: {said} both say how a batch is cut; give one of them")
        if cuts:
            for key in _CUTS:
                result.pop(key, None)
        for group, named_by in NAMED_BY.items():
            if named_by in layer.get(group, {}) and layer[group][named_by] != _name(result, group):
                result.pop(group, None)
        result = _merge(result, layer)
    return result


def _name(values: Mapping[str, Any], group: str) -> Any:
    """Which model, optimizer, … ``values`` name; the schema's own default where they name none."""
    default = {item.name: item.default for item in dataclasses.fields(subgroups(Config)[group])}[NAMED_BY[group]]
    return values.get(group, {}).get(NAMED_BY[group], default)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """A new nested dict: ``over`` on top of ``base``; lists are replaced, mappings merged."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
