"""Text files as bytes: paragraphs of uneven length, each with the byte that comes next at every place."""

from __future__ import annotations

import functools
import lzma
import os
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from wholebatch.core.errors import DataError
from wholebatch.data.arrays import ArrayDataset
from wholebatch.data.checks import positive
from wholebatch.data.split import by_content, check_split

IGNORED = -100  # the target of a place behind the end, which the losses of torch leave out
PADDING = 0  # the byte that stands there; no text holds it
SUFFIXES = (".txt", ".md")
_EMBEDDED = "docs.txt.xz"  # written by scripts/make_docs_text.py
_PARAGRAPH_ENDS = re.compile(rb"\n(?:[ \t\r]*\n)+")


class TextDataset(ArrayDataset):
    """Pieces of text in memory: ``inputs`` and ``targets``, both int64, (samples, length).

    Attributes:
        vocabulary: how many tokens there are: 256, the bytes.
    """

    vocabulary = 256

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        super().__init__(inputs, targets)


def text(
    split: str | None = None,
    root: str | os.PathLike[str] | None = None,
    length: int = 256,
    pattern: str | None = None,
    test_share: float = 0.1,
    seed: int = 0,
) -> TextDataset:
    """Return text files as samples (inputs, targets) for a language model of bytes.

    A sample is a paragraph (what ends with blank lines), or up to ``length`` bytes of one that is longer. ``targets``
    are its bytes, ``inputs`` the bytes before them, so that every byte of the text is a target once; a file
    begins as if behind the end of a line. Behind the end of a piece the input is 0 and the target -100, the
    ``ignore_index`` of torch's losses. A text of n bytes takes some 25 · n bytes of memory.

    Args:
        split: "train" or "test", or None for everything. A piece is of the test part where a hash of ``seed`` and its
            bytes says so: no file moves pieces of another, and pieces that are equal are in one part.
        root: a file, or a folder whose files are taken in the order of their paths, those of folders in it included,
            hidden ones not. None is the documentation of this library, as it was in November 2026.
        length: the most bytes of a piece.
        pattern: which files of a folder, such as "*.py"; None is those that end with .txt or .md.
        test_share: the share of the pieces, about, that is the test part; above 0, below 1.
        seed: of that split.

    Raises:
        DataError: no such path or split, no text, a file that cannot be read or holds a byte 0 and thus no text, an
            impossible number, or a split that is empty.

    >>> data = text("test", length=64)
    >>> data.inputs.shape == data.targets.shape, data.vocabulary
    (True, 256)
    """
    check_split(split, "text")
    length = positive("length", length, "bytes")
    part = functools.partial(by_content, seed=seed, test_share=test_share)
    found = [piece for document in _documents(root, pattern) for piece in pieces(document, length)]
    if not found:
        raise DataError(f"there is no text in {os.fspath(root or _EMBEDDED)!r}: its files are empty")
    chosen = [piece for piece in found if part(piece[1:]) == split or split is None]
    if not chosen:
        raise DataError(
            f"none of {len(found)} pieces of text is in the {split} part (test_share={test_share}); give more text, "
            f"{'raise' if split == 'test' else 'lower'} test_share, or lower length"
        )
    return _dataset(chosen, length)


def pieces(document: bytes, length: int) -> Iterator[bytes]:
    r"""Cut a text into paragraphs, and what is longer than ``length`` into pieces of it.

    Each piece begins with the byte before it (the end of a line before the first), and has up to ``length`` more.

    >>> list(pieces(b"one two\n\nthree", 4))
    [b'\none ', b' two\n', b'\n\n', b'\nthre', b'ee']
    """
    begins = [0, *(end.end() for end in _PARAGRAPH_ENDS.finditer(document))]
    for begin, stop in zip(begins, [*begins[1:], len(document)], strict=True):
        for start in range(begin, stop, length):
            before = document[start - 1 : start] or b"\n"
            yield before + document[start : min(start + length, stop)]


def _dataset(found: list[bytes], length: int) -> TextDataset:
    """Inputs and targets of the pieces, padded."""
    inputs = torch.full((len(found), length), PADDING)
    targets = torch.full((len(found), length), IGNORED)
    for row, piece in enumerate(found):
        tokens = torch.tensor(list(piece))
        inputs[row, : len(piece) - 1] = tokens[:-1]
        targets[row, : len(piece) - 1] = tokens[1:]
    return TextDataset(inputs, targets)


def _documents(root: str | os.PathLike[str] | None, pattern: str | None) -> Iterator[bytes]:
    """The bytes of every file."""
    if root is None:
        yield lzma.decompress((files("wholebatch.data") / "files" / _EMBEDDED).read_bytes())
        return
    for file in _files(Path(root).expanduser(), pattern):
        try:
            document = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
        if PADDING in document:
            raise DataError(f"{file} holds a byte 0, so it is no text; leave it out, or convert it to UTF-8")
        yield document


def _files(root: Path, pattern: str | None) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"there is no file and no folder of texts {str(root)!r}; say which with data.root=PATH")
    try:
        there = sorted(path for path in root.rglob(pattern or "*") if path.is_file() and not _hidden(path, root))
    except (NotImplementedError, ValueError) as error:  # an absolute one, or "**x"
        raise DataError(f"data.pattern={pattern!r}: {error}; expected one such as '*.py'") from error
    chosen = [path for path in there if pattern or path.suffix.lower() in SUFFIXES]
    if not chosen:
        looked = pattern or " or ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise DataError(f"the folder {str(root)!r} holds no file {looked}; say which with data.pattern, such as '*.py'")
    return chosen


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
