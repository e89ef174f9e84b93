"""``history.jsonl``: one JSON object a line, written as it comes.

A number that is not finite is written as ``null``, since JSON has no word for it, and read back as
NaN (an infinity becomes NaN as well). A last line without its end, left by a run that was killed
while it wrote, is no record: reading passes over it, and :class:`wholebatch.checkpoint.Fence` removes it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from wholebatch.core.errors import RunFolderError
from wholebatch.core.record import History, Record
from wholebatch.core.url import Url, location

NAME = "history.jsonl"
_KINDS = ("step", "epoch")


def encode(record: Record) -> bytes:
    """One line of JSON.

    >>> encode({"step": 3, "loss": float("nan")})
    b'{"step": 3, "loss": null}\\n'
    """
    return (json.dumps(_valid(record), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def _valid(value: Any) -> Any:
    """``value`` as JSON can hold it: array scalars as numbers, NaN and infinities as None, strangers as text."""
    if isinstance(value, dict):
        return {str(key): _valid(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_valid(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "shape", None) == ():
        return _valid(item())
    return str(value)


def decode(data: bytes, path: Path | Url) -> tuple[list[Record], int]:
    """Return the records in ``data`` and how many bytes of it they fill.

    Raises:
        RunFolderError: a line that was written to its end is no JSON object, or says no place in the run.
    """
    records, good = [], 0
    for place, line in enumerate(data.splitlines(keepends=True), start=1):
        whole, expected = line.endswith(b"\n"), "one JSON object a line"
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            if record.get("kind") in _KINDS and not all(_is_place(record.get(name)) for name in ("step", "epoch")):
                expected = "numbers as step and epoch of a record"
                raise ValueError("no place")
        except ValueError:
            if whole and line.strip():
                shown = line[:60].decode("utf-8", "replace").rstrip()
                raise RunFolderError(
                    f"{path}, line {place}: expected {expected}, got {shown!r}; "
                    "repair or remove that line, or start in another run folder"
                ) from None
            if not whole:
                break
        else:
            records.append({key: math.nan if value is None else value for key, value in record.items()})
        good += len(line)
    return records, good


def _is_place(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_history(path: str | os.PathLike[str] | Url) -> History:
    """Return the history in a run folder, or in its ``history.jsonl``; values that were not finite are NaN.

    Raises:
        RunFolderError: there is none, it cannot be read, or a line in it is damaged.
    """
    path = location(path)
    file = path / NAME if path.is_dir() else path
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RunFolderError(
            f"no history can be read from {file}: {error.strerror or error}; name a run folder that holds {NAME}"
        ) from error
    return History(decode(data, file)[0])


class Journal:
    """The growing ``history.jsonl`` of a run, written through its fence.

    A line that cannot be written (a full disk) is kept and written with the next one: see :meth:`add`.

    Raises:
        RunFolderError: a line in it that was written to its end is no JSON object; the file is untouched.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path | Url, fence: Any) -> None:
        self._path, self._fence = path, fence
        self.records = decode(path.read_bytes(), path)[0] if path.exists() else []
        self._waiting = b""
        fence.append(path, b"")

    def add(self, record: Record) -> None:
        """Write a record.

        Raises:
            OSError: it is not written; it will be by the next call that succeeds.
            FencedError: a newer world has the run folder.
        """
        self._waiting += encode(record)
        self.flush()

    def rewrite(self, records: list[Record]) -> None:
        """Make ``records`` all that the file holds; raises as :meth:`add`."""
        self._fence.replace(self._path, b"".join(map(encode, records)))
        self.records, self._waiting = list(records), b""

    def flush(self) -> None:
        """Write what waits; raises as :meth:`add`."""
        if self._waiting:
            self._fence.append(self._path, self._waiting)
            self._waiting = b""
