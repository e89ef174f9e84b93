"""Text files as bytes."""

import importlib.util
import lzma
from pathlib import Path

import pytest
import torch

from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data import registry, text
from wholebatch.data.split import by_content
from wholebatch.data.text import pieces

ROOT = Path(__file__).parents[3]
STORY = b"\n".join(b"paragraph %d says %s\n" % (number, b"word " * (number % 7)) for number in range(200))


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_bytes(STORY)
    return tmp_path / "book.txt"


def said(data):
    """What each sample has as targets."""
    return [bytes(row[row >= 0].tolist()) for row in data.targets]


def test_every_byte_is_a_target_once_and_the_input_is_the_byte_before(book):
    data = text(None, book, length=20)
    assert b"".join(said(data)) == STORY
    assert data.inputs.shape == data.targets.shape == (len(data), 20)
    assert data.inputs.dtype == data.targets.dtype == torch.int64
    real = data.targets != -100
    before = b"".join(bytes(row[kept].tolist()) for row, kept in zip(data.inputs, real, strict=True))
    assert before == b"\n" + STORY[:-1]


def test_pieces_are_padded_behind_their_end(book):
    data = text(None, book, length=64)
    counts = (data.targets != -100).sum(1)
    assert len(counts.unique()) > 20  # of uneven length
    for inputs, targets, count in zip(data.inputs, data.targets, counts.tolist(), strict=True):
        assert (targets[:count] >= 0).all()
        assert (targets[count:] == -100).all()
        assert inputs[:count].all()
        assert not inputs[count:].any()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (b"", []),
        (b"\n\n", [b"\n\n\n"]),
        (b"a\n\n\n\nb", [b"\na\n\n\n\n", b"\nb"]),
        (b"a\r\n\r\nb\r\n", [b"\na\r\n\r\n", b"\nb\r\n"]),
        (b"a\n \t\nb\nc", [b"\na\n \t\n", b"\nb\nc"]),
        (b"abcdefghij", [b"\nabcdefgh", b"hij"]),
        ("ä€".encode(), [b"\n" + "ä€".encode()]),
    ],
)
def test_paragraphs(document, expected):
    assert list(pieces(document, 8)) == expected


def test_the_split_is_a_function_of_what_a_piece_holds(tmp_path, book):
    train, test = said(text("train", book)), said(text("test", book))
    whole = said(text(None, book))
    assert sorted(train + test) == sorted(whole)
    assert not set(train) & set(test)  # 200 distinct, and none in both
    assert test == [piece for piece in whole if by_content(piece, 0, 0.1) == "test"]
    assert 8 < len(test) < 34
    (tmp_path / "a.md").write_bytes(b"More.\n\n" + STORY)  # in front of it, and every paragraph twice
    more = said(text("test", tmp_path))
    assert set(test) <= set(more) <= {*test, b"More.\n\n"}
    assert len(more) >= 2 * len(test)
    assert said(text("test", book, seed=1)) != test
    assert len(said(text("test", book, test_share=0.5))) > 2 * len(test)


def test_the_split_never_changes():
    parts = [by_content(b"%d" % number, 7, 0.25) for number in range(12)]
    assert [number for number, part in enumerate(parts) if part == "test"] == [0, 2, 5]


def test_files_of_a_folder(tmp_path):
    for name, content in {"b.txt": b"2", "a/x.MD": b"1", ".hidden/h.txt": b"H", ".h.md": b"H", "z.py": b"3"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert said(text(None, tmp_path)) == [b"1", b"2"]
    assert said(text(None, tmp_path, pattern="*.py")) == [b"3"]
    assert said(text(None, tmp_path / "z.py")) == [b"3"]


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        (None, {}, "no file and no folder of texts .*nowhere.*data.root=PATH"),
        (b"", {}, "there is no text in .*its files are empty"),
        (b"a\0b", {}, "holds a byte 0, so it is no text"),
        (b"a", {"split": "test"}, "none of 1 pieces of text is in the test part .*raise test_share"),
        (b"a", {"split": "tset"}, "did you mean 'test'"),
        (b"a", {"length": 0}, "length must be at least 1"),
        (b"a", {"test_share": 1.5, "split": "test"}, "test_share must be above 0"),
    ],
)
def test_what_cannot_be_used(tmp_path, content, options, match):
    path = tmp_path / "nowhere"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=match):
        text(**{"split": None, "root": path, **options})


def test_folders_without_texts(tmp_path):
    (tmp_path / "z.py").write_bytes(b"3")
    with pytest.raises(DataError, match=r"holds no file \*.txt or \*.md; say which with data.pattern"):
        text(None, tmp_path)
    with pytest.raises(DataError, match=r"data.pattern='/x'"):
        text(None, tmp_path, pattern="/x")
    with pytest.raises(InputTypeError, match="whole number of bytes"):
        text(None, tmp_path, length=2.5)


def test_the_embedded_text_is_the_documentation():
    data = registry.read("text", "train")
    assert registry.classes_of(data) == ()
    assert data.vocabulary == 256
    assert b"# Architecture" in b"".join(said(text(None)))
    assert len(said(text("test"))) > 40


def test_the_script_joins_the_pages(tmp_path):
    spec = importlib.util.spec_from_file_location("make_docs_text", ROOT / "scripts" / "make_docs_text.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "b.md").write_bytes(b"two\n\n")
    (tmp_path / "a.md").write_bytes(b"\none\n\nmore")
    assert script.joined(tmp_path) == b"one\n\nmore\n\ntwo\n"
    assert lzma.decompress(script.TARGET.read_bytes()).startswith(b"# ")
    assert script.TARGET.stat().st_size < script.MOST
