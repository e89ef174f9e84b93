import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wholebatch.checkpoint import Fence
from wholebatch.core.errors import RunFolderError
from wholebatch.display.jsonl import NAME, Journal, decode, encode, read_history

_RECORDS = [
    {"kind": "epoch", "split": "train", "step": n, "epoch": n, "samples": 10 * n, "loss": 1 / n} for n in (1, 2, 3)
]


def _write(path, *, resume=()):
    with Fence.take(path.parent) as fence:
        journal = Journal(path, fence)
        for record in resume or _RECORDS:
            journal.add(record)


def test_round_trip(tmp_path):
    _write(tmp_path / NAME)
    assert read_history(tmp_path).records == _RECORDS
    assert read_history(tmp_path / NAME).records == _RECORDS
    assert (tmp_path / NAME).read_text().count("\n") == 3


def test_every_line_is_on_disk_when_add_returns(tmp_path):
    with Fence.take(tmp_path) as fence:
        journal = Journal(tmp_path / NAME, fence)
        for count, record in enumerate(_RECORDS, start=1):
            journal.add(record)
            assert len(read_history(tmp_path)) == count


def test_rewriting_cuts_the_history(tmp_path):
    _write(tmp_path / NAME)
    with Fence.take(tmp_path) as fence:
        journal = Journal(tmp_path / NAME, fence)
        assert journal.records == _RECORDS
        journal.rewrite(_RECORDS[:1])
        journal.add(_RECORDS[2])
    assert read_history(tmp_path).records == [_RECORDS[0], _RECORDS[2]]


def _strict(text):
    """Parse JSON as the standard has it, without NaN and Infinity."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_comes_back_as_nan(tmp_path, value):
    _write(tmp_path / NAME, resume=[{"step": 1, "loss": value, "inner": [value]}])
    assert _strict((tmp_path / NAME).read_text()) == {"step": 1, "loss": None, "inner": [None]}
    assert math.isnan(read_history(tmp_path).records[0]["loss"])


def test_scalars_of_arrays_are_numbers():
    numpy = pytest.importorskip("numpy")
    record = {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.float32("nan"), "d": object}
    assert _strict(encode(record)) == {"a": 0.5, "b": 3, "c": None, "d": "<class 'object'>"}


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5) | st.booleans(),
        ),
        max_size=4,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_record_survives(tmp_path_factory, records):
    data = b"".join(encode(record) for record in records)
    assert decode(data, tmp_path_factory.getbasetemp()) == (records, len(data))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_run_killed_at_any_byte_is_continued(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("killed") / NAME
    whole = b"".join(encode(record) for record in _RECORDS)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    kept = sum(cut >= len(b"".join(encode(r) for r in _RECORDS[:n])) for n in (1, 2, 3))
    assert read_history(path).records[:kept] == _RECORDS[:kept]
    more = {"step": 99, "loss": 0.5}
    _write(path, resume=[more])
    assert read_history(path).records == [*_RECORDS[:kept], more]
    assert all(_strict(line) for line in path.read_text().splitlines())


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    (tmp_path / NAME).write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(
        RunFolderError, match=r"history.jsonl, line 2: expected one JSON object a line, got '\{\"step\":'"
    ):
        read_history(tmp_path)
    with Fence.take(tmp_path) as fence, pytest.raises(RunFolderError, match="line 2"):
        Journal(tmp_path / NAME, fence)
    assert (tmp_path / NAME).read_text().count("\n") == 3  # untouched


@pytest.mark.parametrize("place", ['"a"', "null", "[1]", "NaN"])
@pytest.mark.parametrize("name", ["step", "epoch"])
def test_a_record_without_its_place_is_an_error(tmp_path, name, place):
    record = {"kind": "epoch", "split": "train", "step": 3, "epoch": 1, "loss": 1.0}
    line = json.dumps(record).replace(f'"{name}": {record[name]}', f'"{name}": {place}')
    (tmp_path / NAME).write_text(f"{json.dumps(record)}\n{line}\n")
    with pytest.raises(RunFolderError, match=r"line 2: expected numbers as step and epoch of a record, got"):
        read_history(tmp_path)


def test_no_history(tmp_path):
    with pytest.raises(RunFolderError, match=r"no history can be read from .*: No such file"):
        read_history(tmp_path)


def test_a_full_disk_keeps_the_lines_until_there_is_room(tmp_path, monkeypatch):
    with Fence.take(tmp_path) as fence:
        journal = Journal(tmp_path / NAME, fence)
        journal.add(_RECORDS[0])

        def full(path, data):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(fence, "append", full)
            with pytest.raises(OSError, match="No space"):
                journal.add(_RECORDS[1])
        journal.add(_RECORDS[2])
    assert read_history(tmp_path).records == _RECORDS
