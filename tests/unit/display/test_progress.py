import io
import subprocess
import sys

import pytest

from wholebatch.display import Lines, Live, choose


@pytest.mark.parametrize(
    ("environ", "kind"),
    [
        ({"TERM": "xterm"}, Live),
        ({}, Live),
        ({"TERM": "xterm", "CI": "false"}, Live),
        ({"TERM": "xterm", "NO_COLOR": ""}, Live),
        ({"TERM": "dumb"}, Lines),
        ({"TERM": "xterm", "CI": "true"}, Lines),
        ({"TERM": "xterm", "FORCE_COLOR": "1", "CI": "1"}, Lines),
    ],
)
def test_a_terminal(terminal, environ, kind):
    assert type(choose(terminal().stream, environ=environ)) is kind


def test_elsewhere():
    class Bare:
        def write(self, text):
            return len(text)

    assert type(choose(io.StringIO(), environ={"TERM": "xterm", "FORCE_COLOR": "1"})) is Lines
    assert type(choose(Bare(), environ={"TERM": "xterm"})) is Lines


def test_a_program_without_a_console(monkeypatch, fake_run):
    monkeypatch.setattr(sys, "stdout", None)
    assert fake_run().drive(choose()) is None


def test_nothing_heavy_is_imported_before_something_is_drawn():
    code = (
        "import sys, wholebatch.display\n"
        "assert wholebatch.display.choose() and wholebatch.display.RunFolder('x')\n"
        "print([name for name in ('rich', 'matplotlib', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
