"""From a recipe, files and ``key=value`` to a checked :class:`Config`."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wholebatch.config.check import check, expectation
from wholebatch.config.layer import command_line, normalise, stack
from wholebatch.config.recipe import DEFAULT, preset_text, recipe_text
from wholebatch.config.schema import Config, type_of
from wholebatch.config.show import inline
from wholebatch.config.source import parse_override, read_file, read_yaml
from wholebatch.core.errors import ConfigError, RunFolderError
from wholebatch.core.url import Url

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list of numbers such as [0.9, 0.999]",
}


def load(
    recipe: str | None = None,
    *,
    preset: str | None = None,
    files: Sequence[Path] = (),
    overrides: Sequence[str] = (),
) -> Config:
    """Return the configuration of a recipe, overridden by its preset, by YAML files in order and then by ``key=value``.

    Without ``recipe`` the one that the overrides or the files name is taken, else digits; likewise ``preset``, else
    none.

    >>> load("digits", overrides=["batch_size=64", "optimizer=adamw"]).optimizer.name
    'adamw'

    Raises:
        ConfigError: a file, recipe or preset is missing, a key is unknown, a value is of another type or impossible.
    """
    layers = [normalise(read_file(path), str(path)) for path in files]
    layers.append(command_line([parse_override(text) for text in overrides], "command line"))
    sources = [*map(str, files), "command line"]
    said = _named("recipe", recipe, layers)
    chosen = DEFAULT if said is None else said
    base = f"recipe {chosen}"
    first, names = [normalise(read_yaml(recipe_text(chosen), base), base)], [base]
    over = _named("preset", preset, layers)
    if over is not None:
        names.append(f"preset {over} of {base}")
        first.append(normalise(read_yaml(preset_text(chosen, over), names[-1]), names[-1]))
    last = {"recipe": chosen, "preset": over}
    return _checked([*first, *layers, last], [*names, *sources, "command line"])


def _named(key: str, given: str | None, layers: Sequence[Mapping[str, Any]]) -> str | None:
    """The recipe or the preset: what is given, or else what the last layer that speaks of it says.

    Raises:
        ConfigError: it is given, and the command line says another one.
    """
    said = [layer[key] for layer in layers if key in layer]
    if given is not None and key in layers[-1] and said[-1] != given:
        raise ConfigError(f"the {key} is given twice, as {given!r} and {key}={said[-1]}; give it once")
    if given is not None:
        return given
    return None if not said or said[-1] is None else str(said[-1])


def load_run(run_dir: Path | Url, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration that a run folder holds, overridden by ``key=value``.

    Raises:
        RunFolderError: there is no such folder, or no ``config.yaml`` in it.
        ConfigError: as for :func:`load`.
    """
    path = run_dir / "config.yaml"
    try:
        there, known = run_dir.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read the run folder {str(run_dir)!r}: {error}") from None
    if not there:
        raise RunFolderError(f"there is no run folder {str(run_dir)!r}; name one that 'wholebatch train' made")
    if not known:
        raise RunFolderError(f"{str(run_dir)!r} is no run folder: it has no config.yaml")
    line = command_line([parse_override(text) for text in overrides], "command line")
    kept = normalise(read_file(path), str(path))
    if "preset" in line and line["preset"] != kept.get("preset"):
        raise ConfigError(
            f"preset={line['preset']}: a preset is for a new run; this one began with {kept.get('preset') or 'none'}"
        )
    return _checked([kept, line], [str(path), "command line"])


def _checked(layers: list[dict[str, Any]], sources: list[str]) -> Config:
    """Merge normalised layers over the schema; each is tried alone first, so that an error names its source."""
    for layer, source in zip(layers, sources, strict=True):
        merged(layer, source)
    config = merged(stack(layers, sources), "configuration")
    for group, key in ((config, "run_dir"), (config.data, "root")):
        path = getattr(group, key)
        if path is not None and path.startswith("~"):
            setattr(group, key, str(Path(path).expanduser()))
    check(config)
    return config


def merged(values: dict[str, Any], source: str) -> Config:
    """Return the schema with normalised ``values`` in it, not yet checked.

    Raises:
        ConfigError: a value is of another type; the message begins with ``source``.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{source}: {_explain(error, values)}") from None
    assert isinstance(config, Config)
    return config


@functools.cache
def _schema() -> Any:
    return OmegaConf.structured(Config)


def _explain(error: OmegaConfBaseException, values: Any) -> str:
    """Key, value and expected type of what OmegaConf refused."""
    key = re.sub(r"\[\d+\]", "", error.full_key or "")
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    kind = type_of(key)
    if kind is None or (isinstance(values, str) and ("${" in values or values == "???")):
        return f"{key}: {str(error).splitlines()[0]}"
    return f"{key}={inline(values)}: expected {expectation(key) or _in_words(kind)}"


def _in_words(kind: Any) -> str:
    """A type as a person says it.

    >>> _in_words(int | None)
    'a whole number or null'
    """
    parts = [getattr(part, "__name__", str(part)) for part in get_args(kind) or (kind,)]
    return " or ".join(_WORDS.get(part, part) for part in parts)
