import io
import math
import os

import pytest

from wholebatch.display.lines import Lines


def test_golden(fake_run, golden):
    stream = io.StringIO()
    fake_run(epochs=12).drive(Lines(stream))
    golden("lines.txt", stream.getvalue())


@pytest.mark.parametrize("evaluates", [True, False])
def test_one_plain_line_per_epoch(fake_run, evaluates):
    reading, writing = os.pipe()
    with open(writing, "w", encoding="utf-8") as stream:
        run = fake_run(epochs=5, evaluates=evaluates)
        assert run.drive(Lines(stream)) is None
        written = os.read(reading, 65536).decode()  # before the stream is closed: every line was flushed
    os.close(reading)
    assert "\r" not in written
    assert "\x1b" not in written
    assert written.count("\n") == 5
    assert [line.split()[:2] for line in written.splitlines()] == [["epoch", f"{epoch}/5"] for epoch in range(1, 6)]
    assert ("test accuracy" in written) is evaluates
    assert run.reads == 0


def test_a_line_is_there_as_soon_as_its_test_record_is(fake_run):
    stream, run = io.StringIO(), fake_run()
    lines = Lines(stream)
    lines.start(run.shape)
    train, test = run.records(1)
    lines.record(train)
    assert stream.getvalue() == ""
    lines.record(test)
    assert stream.getvalue().count("\n") == 1
    lines.record({"kind": "step", "split": "train", "epoch": 2, "step": 2000, "loss": 0.5, "lr": 0.1, "grad_norm": 1.0})
    assert stream.getvalue().splitlines()[1:] == ["epoch 2/3  step 2,000  loss 0.5000  lr 0.1000"]


def test_an_evaluation_that_did_not_come_loses_no_line(fake_run):
    stream, run = io.StringIO(), fake_run()
    lines = Lines(stream)
    lines.start(run.shape)
    for epoch in (1, 2, 3):
        lines.record(run.records(epoch)[0])
        assert stream.getvalue().count("\n") == epoch - 1
    run.records = lambda epoch: []
    run.drive_epoch(4, [lines])
    assert stream.getvalue().count("\n") == 3
    lines.record({"kind": "epoch", "split": "train", "epoch": 4, "loss": 1.0})
    lines.end(run.history, RuntimeError())
    assert stream.getvalue().count("\n") == 4


def test_a_test_record_that_was_not_announced_gets_a_line(fake_run):
    stream, run = io.StringIO(), fake_run()
    lines = Lines(stream)
    lines.start(fake_run(evaluates=False).shape)
    for record in run.records(1):
        lines.record(record)
    assert stream.getvalue().splitlines()[1] == "epoch 1/3  test accuracy 95.00 %"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_poor_encodings(fake_run, encoding):
    raw = io.BytesIO()
    lines = Lines(io.TextIOWrapper(raw, encoding=encoding, newline="\n"))
    lines.start(fake_run().shape)
    lines.message("größer → 5\x1b[31m\nsecond line")
    assert raw.getvalue().count(b"\n") == 1
    assert b"\x1b" not in raw.getvalue()
    assert raw.getvalue().endswith(b" ? 5[31m second line\n")


def test_a_reader_that_went_away_does_not_stop_training(fake_run):
    reading, writing = os.pipe()
    stream = open(writing, "w", encoding="utf-8")  # noqa: SIM115
    lines, run = Lines(stream), fake_run(epochs=9)
    os.close(reading)
    assert run.drive(lines) is None
    assert len(run.history) == 18
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_strange_records_do_not_stop_training(fake_run):
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start(fake_run(evaluates=False).shape)
    lines.record({"kind": "epoch", "split": "train", "epoch": 1, "loss": None, "accuracy": math.nan})
    lines.record({"kind": "epoch", "split": "train", "epoch": 2, "samples": "many"})
    assert stream.getvalue().splitlines() == [
        "epoch 1/3  loss ?  accuracy nan %  " + stream.getvalue().splitlines()[0].split("nan %  ")[1],
        "(this epoch's line cannot be written: ValueError: invalid literal for int() with base 10: 'many')",
    ]
