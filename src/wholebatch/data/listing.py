"""A list of image files and their labels: CSV, or JSON lines."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wholebatch.core.errors import DataError
from wholebatch.data.checks import on_error_policy
from wholebatch.data.imagefiles import ImageFiles, shown
from wholebatch.data.split import SPLITS, check_split, stratified

FILE_COLUMNS = ("file", "path", "image", "filename", "file_name")
LABEL_COLUMNS = ("label", "class", "target")
EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson")

Rows = list[tuple[str, str, str | None]]  # (file, label, split)


def image_list(
    path: str | os.PathLike[str],
    split: str | None = None,
    on_error: str = "raise",
    *,
    root: str | os.PathLike[str] | None = None,
    size: int | None = None,
    test_share: float = 0.2,
    seed: int = 0,
) -> ImageFiles:
    """Return the images that a list names, with the labels that it gives them.

    A CSV file (a ``.tsv`` with tabs) has a header with a column ``file`` (``path``, ``image``, ``filename``) and a
    column ``label`` (``class``, ``target``), or no header and these two columns in this order. JSON lines are one
    object a line with such keys. A column ``split`` of "train" and "test" is the split; without it, the split is
    stratified as that of :func:`image_folder`. Labels are names or numbers; the classes are all labels of the list in
    order (numbers by value).

    Args:
        path: the list.
        split: "train", "test", or None for everything.
        root: the folder that the files are relative to; the list's own, if none.
        on_error, size, test_share, seed: see :func:`image_folder`.

    Raises:
        DataError: the list is missing, is not UTF-8, has a line without file or label, or no line at all.
    """
    check_split(split, "a list")
    on_error_policy(on_error)
    place = Path(os.path.expanduser(os.fspath(path)))
    rows = _read(place)
    classes = _classes({label for _, label, _ in rows})
    numbers = {name: number for number, name in enumerate(classes)}
    if split is not None:
        rows = _part(rows, numbers, split, seed, test_share)
        if not rows:
            raise DataError(f"{shown(place)}: no line of it is in the {split} part")
    files, labels = [file for file, _, _ in rows], [numbers[label] for _, label, _ in rows]
    return ImageFiles(place.parent if root is None else root, files, labels, classes, size, on_error)


def _part(rows: Rows, numbers: dict[str, int], split: str, seed: int, test_share: float) -> Rows:
    if any(said is not None for _, _, said in rows):
        return [row for row in rows if row[2] == split]
    chosen = stratified([row[0] for row in rows], [numbers[row[1]] for row in rows], split, seed, test_share)
    return [rows[place] for place in chosen]


def _read(path: Path) -> Rows:
    lines = path.suffix.lower() in (".jsonl", ".ndjson")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_json_rows(path, file) if lines else _csv_rows(path, file))
    except FileNotFoundError:
        raise DataError(f"there is no list {shown(path)}; name a CSV or JSON-lines file of files and labels") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the list {shown(path)} cannot be read: {error}") from error
    if not rows:
        raise DataError(f"the list {shown(path)} is empty; expected lines such as cat/1.jpg,cat")
    return rows


def _csv_rows(path: Path, file: Any) -> Iterator[tuple[str, str, str | None]]:
    reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    columns: tuple[int, int, int | None] = (0, 1, None)
    for first, row in enumerate(reader):
        if not any(cell.strip() for cell in row):
            continue
        header = [cell.strip().lower() for cell in row]
        if first == 0 and any(name in header for name in FILE_COLUMNS):
            columns = _columns(path, header)
            continue
        cells = {number: cell.strip() for number, cell in enumerate(row)}
        said = None if columns[2] is None else cells.get(columns[2])
        yield _row(path, reader.line_num, cells.get(columns[0]), cells.get(columns[1]), said)


def _columns(path: Path, header: list[str]) -> tuple[int, int, int | None]:
    file = next(header.index(name) for name in FILE_COLUMNS if name in header)
    label = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    if label is None:
        raise DataError(f"the list {shown(path)} has no column {LABEL_COLUMNS[0]!r}; its columns: {', '.join(header)}")
    return file, label, header.index("split") if "split" in header else None


def _json_rows(path: Path, file: Any) -> Iterator[tuple[str, str, str | None]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the list {shown(path)}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f'the list {shown(path)}, line {number}: expected {{"file": …, "label": …}}')
        values = [next((row[name] for name in names if name in row), None) for names in (FILE_COLUMNS, LABEL_COLUMNS)]
        yield _row(path, number, values[0], values[1], row.get("split"))


def _row(path: Path, number: int, file: Any, label: Any, split: Any) -> tuple[str, str, str | None]:
    where = f"the list {shown(path)}, line {number}"
    if not isinstance(file, str) or not file or "\0" in file:
        raise DataError(f"{where}: no file named; expected a file and a label")
    if label is None or label == "" or isinstance(label, bool | float | list | dict):
        raise DataError(f"{where}: no label for {file!r}, or no name or whole number: {label!r}")
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split is 'train' or 'test', got {split!r}")
    return file, str(label), split


def _classes(labels: set[str]) -> list[str]:
    """All labels in order; numbers by value."""
    short = sys.get_int_max_str_digits() or 4300
    if all(label.isascii() and label.isdigit() and len(label) < short for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
