"""Which classes: a text such as ``"0-9, 12"``, both ends of a range included."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wholebatch.core.errors import ConfigError

_PIECE = re.compile(r"(\d{1,9})(?:\s*-\s*(\d{1,9}))?", re.ASCII)


def parse_indices(given: str | int | Sequence[int], classes: int = 1000) -> list[int]:
    """Return the class numbers that ``given`` names, sorted, each once.

    Args:
        given: numbers and ranges separated by commas (a range holds both its ends), one number, or numbers.
        classes: how many there are; a number is from 0 to below it.

    Raises:
        ConfigError: it is malformed; the message has the piece that is.

    >>> parse_indices("0-3, 12, 2")
    [0, 1, 2, 3, 12]
    """
    if isinstance(given, int) and not isinstance(given, bool):
        given = [given]
    found: set[int] = set()
    if isinstance(given, str):
        for piece in given.split(","):
            found.update(_range(piece.strip(), given, classes))
    elif isinstance(given, Sequence) and given:
        for number in given:
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < classes:
                raise _malformed(given, f"{number!r} is no class number from 0 to {classes - 1}")
            found.add(number)
    else:
        raise _malformed(given, "it names no class")
    return sorted(found)


def _range(piece: str, given: str, classes: int) -> range:
    match = _PIECE.fullmatch(piece)
    if match is None:
        raise _malformed(given, f"{piece!r} is no number and no range" if piece else "a piece between commas is empty")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
        raise _malformed(given, f"the range {piece!r} runs backwards; write {last}-{first}")
    if last >= classes:
        raise _malformed(given, f"{last} is too large, class numbers run from 0 to {classes - 1}")
    return range(first, last + 1)


def _malformed(given: object, why: str) -> ConfigError:
    return ConfigError(
        f"sub_indices={given!r}: {why}; expected numbers and ranges such as '0-9, 12', both ends of a range included"
    )
