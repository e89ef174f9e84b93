"""A configuration as YAML that :func:`wholebatch.config.load` reads back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf

from wholebatch.config.schema import Config, field_docs, field_names, is_open

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
_COLUMN = 30  # where the comments begin


def to_yaml(config: Config, *, comments: bool = False) -> str:
    """Return ``config`` as YAML, with a line on each field beside it where ``comments`` says so.

    >>> print(to_yaml(Config(), comments=True).splitlines()[2])  # doctest: +ELLIPSIS
    batch_size: 128               # samples of one optimizer step...
    """
    return "\n".join(_lines(config, 0, comments)) + "\n"


def _lines(group: Any, depth: int, comments: bool) -> Iterator[str]:
    kind: type = type(group)
    docs = field_docs(kind)
    indent = "  " * depth
    for name in field_names(kind):
        value = getattr(group, name)
        nested = hasattr(value, "__dataclass_fields__")
        line = f"{indent}{name}:" if nested else f"{indent}{name}: {inline(value)}"
        yield f"{line:<{_COLUMN - 1}} # {docs[name]}" if comments else line
        if nested:
            yield from _lines(value, depth + 1, comments)
    if is_open(kind):
        for name, value in group.arguments.items():
            yield f"{indent}{name}: {inline(value)}"


def inline(value: Any) -> str:
    """Return one value as YAML on one line (JSON where YAML has no shorter form).

    >>> inline([None, True, 1e-7, "small_cnn", "3"])
    '[null, true, 1.0e-07, small_cnn, "3"]'
    """
    if isinstance(value, float):
        text = repr(value)
        # YAML 1.1 reads 1e-07 as text: a number with an exponent needs a point
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inline(key)}: {inline(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and OmegaConf.create(f"v: {value}") == OmegaConf.create({"v": value}):
            return value
        return "".join(map(_printable, json.dumps(value.replace("${", "\\${"), ensure_ascii=False)))
    return json.dumps(value)


def _printable(character: str) -> str:
    """The character itself, or YAML's escape of one that may not stand in a file."""
    return character if character.isprintable() else f"\\U{ord(character):08x}"
