import errno
import io
import os
import subprocess
import sys

import pytest

from wholebatch.display.output import Output


class Failing(io.StringIO):
    """A stream whose writes fail."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.calls = 0

    def write(self, text):
        self.calls += 1
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), ValueError("closed")])
def test_a_broken_stream_is_given_up_silently(error):
    stream = Failing(error)
    output = Output(stream)
    output.line("one")
    output.line("two")
    assert stream.calls == 1
    assert not output.alive


def test_a_full_pipe_that_does_not_wait_is_tried_again():
    stream = Failing(BlockingIOError())
    output = Output(stream)
    output.line("one")
    output.line("two")
    assert output.alive
    assert stream.calls == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_characters_the_encoding_lacks_become_question_marks(encoding):
    raw = io.BytesIO()
    output = Output(io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="\n"))
    output.line("━ x")
    assert raw.getvalue() == b"? x\n"


def test_none_and_strangers_are_no_terminals():
    assert not Output(None).isatty()
    assert not Output(object()).isatty()
    closed = io.StringIO()
    closed.close()
    assert not Output(closed).isatty()
    Output(None).line("nobody hears this")
    Output(closed).line("nor this")
    with pytest.raises(OSError, match="no file descriptor"):
        Output(object()).fileno()


def test_standard_output_without_reader_ends_without_traceback():
    """The text left in Python's buffer must not fail again at its exit."""
    code = (
        "import sys\n"
        "from wholebatch.display.output import Output\n"
        "output = Output(sys.stdout)\n"
        "sys.stdin.readline()\n"
        "for _ in range(50): output.line('x' * 1000)\n"
        "print('more')\n"
        "sys.stderr.write('trained %s' % output.alive)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    child.stdout.close()
    child.stdin.write("go\n")
    child.stdin.flush()
    said = child.stderr.read()
    assert child.wait(30) == 0
    assert said == "trained False"
    child.stdin.close()
    child.stderr.close()


def test_another_stream_keeps_its_file_descriptor():
    """Only standard streams are sent nowhere: a descriptor of the caller's stays the caller's."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(os.devnull) as nowhere, open(writing, "w", encoding="utf-8") as stream:
        before = os.fstat(stream.fileno())
        output = Output(stream)
        output.line("x")
        assert not output.alive
        assert os.fstat(stream.fileno()).st_ino == before.st_ino != os.fstat(nowhere.fileno()).st_ino
        with pytest.raises(BrokenPipeError):
            stream.close()
