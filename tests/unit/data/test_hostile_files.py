"""Archives, pickles and images that are damaged, or that mean harm."""

import io
import os
import pickle
import tarfile
import time

import cifar_files
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import wholebatch as wb
from wholebatch.core.errors import DataError
from wholebatch.data.archive import read_members
from wholebatch.data.images import read_image
from wholebatch.data.pickled import read_pickle

CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8)
BOUNDED = settings(
    max_examples=60, deadline=2000, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def changed(content: bytes, changes, cut: int) -> bytes:
    """``content`` with bytes replaced, and cut off."""
    new = bytearray(content)
    for place, value in changes:
        new[place % len(new)] = value
    return bytes(new[: len(new) - cut % len(new)] if cut else new)


def allowed(name: str, work):
    """What ``work`` gives, or None where it raises the one error that it may, with the file's name."""
    try:
        return work()
    except DataError as error:
        if name not in str(error):
            raise
        return None


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_a_pickle_runs_nothing(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="a pickle's name is no pickle of plain values"):
        read_pickle(pickle.dumps({"data": Evil()}, protocol), "a pickle's name")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x02cnumpy\ndtype\n}\x8c\x08__code__K\x01sb.",  # BUILD on a stand-in itself
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n}\x8c\x01xK\x01sb.",
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",  # a bytearray of a terabyte
        b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x02r\xff\xff\xff\xff.",  # remember at place 2^32, with nothing there
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",  # lists in lists
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02cnumpy\ndtype\n.",
        pickle.dumps(np.array([{}], dtype=object), 2),
        pickle.dumps(np.zeros(2, dtype="U4"), 2),
        pickle.dumps(object(), 2),
        pickle.dumps({1, 2}, 4),
        b"",
        b".",
    ],
)
def test_pickles_that_are_refused(content):
    before = time.monotonic()
    if content == b"\x80\x02Nr\xff\xff\xff\xff.":
        assert read_pickle(content, "x") is None
    else:
        with pytest.raises(DataError, match="x is no pickle"):
            read_pickle(content, "x")
    assert time.monotonic() - before < 5


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", ["<u1", "<i8", ">i4", "<f4", ">f8", "|b1"])
def test_plain_pickles_are_read(protocol, kind):
    array = np.arange(12).reshape(3, 4).astype(kind)
    value = {"a": [1, -5, 2**40], "b": (None, True, 1.5, "é", b"\xff"), "c": array, "d": np.asfortranarray(array)}
    found = read_pickle(pickle.dumps(value, protocol), "x")
    assert found["a"] == value["a"]
    assert found["b"] == value["b"]
    for name in "cd":
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")


def archive(members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "match"),
    [
        ("../evil", tarfile.REGTYPE, r"its member \.\./evil would land outside"),
        ("/tmp/evil", tarfile.REGTYPE, "would land outside"),
        ("a/../../evil", tarfile.REGTYPE, "would land outside"),
        ("..\\evil", tarfile.REGTYPE, "would land outside"),
        ("C:\\evil", tarfile.REGTYPE, "would land outside"),
        ("test_batch", tarfile.SYMTYPE, "test_batch is a link"),
        ("test_batch", tarfile.LNKTYPE, "test_batch is a link"),
    ],
)
def test_members_that_would_land_outside(tmp_path, name, kind, match):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    path = tmp_path / "in" / "a.tar.gz"
    path.parent.mkdir()
    path.write_bytes(archive([(member, b"")]))
    with pytest.raises(DataError, match=match):
        wb.data.cifar10("test", path)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["in", "a.tar.gz"]


def test_a_size_that_leads_back_does_not_hang(tmp_path):
    header = bytearray(tarfile.TarInfo("a").tobuf())
    for size in (b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\xff" * 10 + b"\xfc\x00", b"\xff" * 10 + b"\xfe\x00"):
        header[124:136] = size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        path = tmp_path / "a.tar"
        path.write_bytes(tarfile.TarInfo("first").tobuf() + bytes(header) * 3)
        with pytest.raises(DataError, match=r"a\.tar is"):
            read_members(path, {"a"})


@BOUNDED
@given(CHANGES, st.integers(0, 10**4))
def test_damaged_archives_raise_nothing_else(tmp_path, changes, cut):
    whole = cifar_files.tar(tmp_path / "whole.tar.gz", cifar_files.binary_files(10, rows=1)).read_bytes()
    plain = cifar_files.tar(tmp_path / "whole.tar", cifar_files.binary_files(10, rows=1), "w").read_bytes()
    for name, content in (("a.tar.gz", whole), ("a.tar", plain)):
        (tmp_path / name).write_bytes(changed(content, changes, cut))
        allowed(name, lambda name=name: wb.data.cifar10("test", tmp_path / name))
    assert {entry.name for entry in tmp_path.iterdir()} == {"whole.tar.gz", "whole.tar", "a.tar.gz", "a.tar"}


SMALL = pickle.dumps({b"data": np.arange(24, dtype=np.uint8).reshape(2, 12), b"labels": [3, 4], b"x": b"y" * 20}, 2)


@settings(BOUNDED, max_examples=400)
@given(CHANGES, st.integers(0, 40))
def test_damaged_pickles_raise_nothing_else(changes, cut):
    try:
        found = read_pickle(changed(SMALL, changes, cut), "x")
    except DataError:
        return
    assert isinstance(found, dict | list | tuple | str | bytes | int | float | np.ndarray | None)


@settings(BOUNDED, max_examples=40)
@given(CHANGES, st.integers(0, 10**4), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]))
def test_damaged_images_raise_nothing_else(changes, cut, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, kind)
    content = changed(buffer.getvalue(), changes, cut)
    image = allowed("a name", lambda: read_image(content, "a name"))
    assert image is None or image.mode == "RGB"


@settings(BOUNDED, max_examples=40)
@given(CHANGES, st.integers(0, 10**3))
def test_damaged_parquet_files_raise_nothing_else(tmp_path, changes, cut):
    pytest.importorskip("pyarrow", reason="needs pyarrow (extra hf)")
    path = tmp_path / "train.parquet"
    if not (tmp_path / "whole.parquet").exists():
        cifar_files.parquet(tmp_path / "whole.parquet", 100, "test")
    path.write_bytes(changed((tmp_path / "whole.parquet").read_bytes(), changes, cut))
    data = allowed("train.parquet", lambda: wb.data.hugging_face(path))
    for index in range(0 if data is None else len(data)):
        sample = allowed("train.parquet", lambda index=index: data[index])
        assert sample is None or sample[0].shape[0] == 3
