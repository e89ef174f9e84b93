"""Where settings come from: YAML text, YAML files, and ``key=value`` written on a command line.

Each gives a nested dict of what it says and nothing else; :mod:`wholebatch.config.layer` makes sense of it.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wholebatch.config.schema import dotted_keys, type_of
from wholebatch.core.errors import ConfigError, nearest
from wholebatch.core.url import Url


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping that YAML ``text`` holds; an empty text is an empty mapping.

    Raises:
        ConfigError: it is no YAML, or no mapping; the message begins with ``source`` and the line.
    """
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{source}: not YAML with key: value lines: {reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: expected key: value lines, got a {type(values).__name__}")
    return values


def read_file(path: Path | Url) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: it cannot be read, or is no YAML mapping.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {str(path)!r}; -c takes the path of a YAML file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{str(path)!r} is not text in UTF-8; -c takes a YAML file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot read {str(path)!r}: {reason}; -c takes a YAML file") from None
    return read_yaml(text, str(path))


def parse_override(text: str) -> tuple[list[str], Any]:
    """Return the key, cut at its dots, and the value of ``key=value``, the value being YAML.

    >>> parse_override("optimizer.betas=[0.9, 0.95]")
    (['optimizer', 'betas'], [0.9, 0.95])

    Raises:
        ConfigError: there is no ``=``, no value, or the value is no YAML.
    """
    key, equals, written = text.partition("=")
    if "\0" in text or not _is_utf8(text):
        raise ConfigError(f"{text!r} holds a character that no setting can hold; write key=value in plain text")
    if not equals:
        known = dotted_keys()
        repair = f"; write {key}=value" if key in known else nearest(key, known)
        raise ConfigError(f"{text!r} has no value{repair or '; settings are written key=value'}")
    if not written.strip():
        raise ConfigError(f"{text!r} has no value; write {key}=value, or {key}=null where none is meant")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={written}"]), resolve=False)["value"]  # type: ignore
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError):
        raise ConfigError(f"{text!r}: the value is not YAML; put quotes around it if it is text") from None
    if value in ("None", "none"):
        value = None
    if isinstance(value, int | float) and type_of(key) in (str, str | None):
        value = written  # a folder named 007 is not the number 7
    return key.split("."), value


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
