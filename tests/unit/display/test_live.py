import atexit
import io
import re
import sys
import time

import pytest

from wholebatch.core.record import Progress
from wholebatch.display.live import Live
from wholebatch.display.progress import choose

_SGR = re.compile(r"\x1b\[[\d;]*m")


def _live(terminal, run, **options):
    return Live(terminal.stream, clock=run.clock, **options)


def test_finished_epochs_stay_and_the_display_goes(fake_run, terminal):
    term = terminal()
    run = fake_run()
    assert run.drive(_live(term, run)) is None
    screen = term.screen()
    assert screen.cursor
    assert screen.wrapped == 0
    assert [line.split("lr")[0].rstrip() for line in screen.lines] == [
        "epoch 1/3  loss 0.2500  accuracy 87.50 %  test accuracy 95.00 %",
        "epoch 2/3  loss 0.1250  accuracy 93.75 %  test accuracy 95.00 %",
        "epoch 3/3  loss 0.0833  accuracy 95.83 %  test accuracy 95.00 %",
    ]


def test_the_display_says_everything(fake_run, terminal):
    term = terminal()
    run = fake_run()
    run.drive(_live(term, run))
    text = _SGR.sub("", term.read())
    assert re.search(r"epoch 2/3  ━+╺?━*  3/4 batches  \d+ s left\r\n", text)
    assert re.search(r"loss 0.1429  accuracy 92.86 %  lr 0.0500  [\d,]+ samples/s", text)
    assert "4/4 batches  evaluating" in text
    assert "starting" in text


@pytest.mark.parametrize(
    ("fail_at", "error", "word"), [(6, KeyboardInterrupt, "interrupted"), (6, RuntimeError, "stopped")]
)
def test_an_error_gives_the_terminal_back(fake_run, terminal, fail_at, error, word):
    term = terminal()
    run = fake_run()
    assert isinstance(run.drive(_live(term, run), fail_at=fail_at, error=error), error)
    screen = term.screen()
    assert "\x1b[?25l" in term.read()
    assert screen.cursor
    assert screen.lines[0].startswith("epoch 1/3  loss")
    assert re.fullmatch(rf"epoch 2/3  .*1/4 batches  {word}", screen.lines[1])
    assert screen.lines[2].startswith("loss")


def test_an_error_before_the_first_step(fake_run, terminal):
    term = terminal()
    run = fake_run()
    run.drive(_live(term, run), fail_at=1)
    assert term.screen().cursor
    assert term.screen().lines == []


def test_the_interpreters_exit_shows_the_cursor(fake_run, terminal, monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setattr(atexit, "unregister", lambda function: None)
    term = terminal()
    run = fake_run()
    live = _live(term, run)
    live.start(run.shape)
    (close,) = registered
    close()
    close()
    assert term.screen().cursor


@pytest.mark.parametrize("columns", [20, 40, 60, 79, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_width_wraps(fake_run, terminal, columns, encoding):
    term = terminal(columns=columns, encoding=encoding)
    run = fake_run(epochs=12)
    run.drive(_live(term, run))
    screen = term.screen()
    assert screen.wrapped == 0
    assert len(screen.lines) == 12
    assert screen.cursor
    assert screen.lines[0].startswith("epoch  1/12  loss 0.2500" if columns > 80 else " 1/12")


def test_forty_columns_show_everything_on_more_lines(fake_run, terminal):
    term = terminal(columns=40)
    run = fake_run()
    run.drive(_live(term, run))
    text = _SGR.sub("", term.read())
    assert re.search(r"loss 0.1429  acc 92.86 %  lr 0.0500\r\n[\d.k]+/s", text)
    assert "3/4 batches" in text
    assert "s left" in text


def test_a_terminal_without_a_size(fake_run, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("LINES", "20")
    term = terminal(columns=0, lines=0)
    run = fake_run()
    run.drive(_live(term, run))
    term.columns = 70
    assert term.screen().wrapped == 0
    assert len(term.screen().lines) == 3


def test_no_color_writes_no_style_at_all(fake_run, terminal):
    colored, plain = terminal(), terminal()
    fake_run().drive(choose(colored.stream, environ={"TERM": "xterm-256color"}))
    fake_run().drive(choose(plain.stream, environ={"TERM": "xterm-256color", "NO_COLOR": "1"}))
    assert _SGR.search(colored.read())
    assert not _SGR.search(plain.read())
    assert len(plain.screen().lines) == 3


def test_the_device_is_read_only_for_drawing(fake_run, terminal):
    run = fake_run(epochs=1, steps=400, seconds=0.005)
    run.drive(_live(terminal(), run))
    assert 14 <= run.reads <= 17  # two seconds, eight times a second


def test_a_slow_terminal_is_drawn_less_often(fake_run, terminal):
    run = fake_run(epochs=1, steps=400, seconds=0.1)
    live = _live(terminal(), run)
    draw = live._draw

    def slow():
        run.now += 0.5
        draw()

    live._draw = slow
    run.drive(live)
    assert 2 <= run.reads <= 6  # forty seconds; half a second of drawing for each ten


@pytest.mark.parametrize("method", ["_panel", "_above", "_open", "_close"])
def test_a_failure_to_draw_goes_on_with_plain_lines(fake_run, terminal, method):
    term = terminal()
    run = fake_run()
    live = _live(term, run)

    def fail(*_):
        raise LookupError("no such colour")

    setattr(live, method, fail)
    assert run.drive(live) is None
    atexit.unregister(fail)
    text = _SGR.sub("", term.read())
    assert text.count("plain lines follow: LookupError: no such colour") == 1
    if method != "_close":
        after = text.split("no such colour")[1]
        assert len(re.findall(r"epoch \d/3  loss .* samples/s\r\n", after)) == 3
        assert term.screen().cursor


def test_a_failing_read_of_values_does_not_stop_training(fake_run, terminal):
    term = terminal()
    run = fake_run()
    run.read = lambda step: 1 / 0
    assert run.drive(_live(term, run)) is None
    assert term.read().count("ZeroDivisionError") == 1


def test_an_interrupt_while_drawing_passes_through(fake_run, terminal):
    term = terminal()
    run = fake_run()
    live = _live(term, run)

    def interrupt():
        raise KeyboardInterrupt

    live.start(run.shape)
    with pytest.raises(KeyboardInterrupt):
        live.step(Progress(1, 1, 1, 512, interrupt))
    live.end(run.history, KeyboardInterrupt())
    assert term.screen().cursor


def test_a_terminal_that_went_away(fake_run):
    class Gone(io.StringIO):
        def isatty(self):
            return True

        def write(self, text):
            raise BrokenPipeError

    run = fake_run()
    live = Live(Gone(), clock=run.clock)
    assert run.drive(live) is None
    assert run.reads == 0


def test_messages_and_prints_stand_above(fake_run, terminal, monkeypatch):
    term = terminal()
    monkeypatch.setattr(sys, "stdout", term.stream)
    run = fake_run()
    live = _live(term, run)
    live.message("before")
    live.start(run.shape)
    run.drive_epoch(1, [live])
    live.message("[red]a note[/red] of\n two lines")
    print("printed")
    print("unfinished", end="")
    run.drive_epoch(2, [live])
    live.end(run.history, None)
    assert sys.stdout is term.stream
    live.message("after")
    lines = term.screen().lines
    assert [line[:29] for line in lines] == [
        "before",
        "epoch 1/3  loss 0.2500  accur",
        "[red]a note[/red] of two line",
        "printed",
        "epoch 2/3  loss 0.1250  accur",
        "unfinished",
        "after",
    ]


def test_a_stream_that_goes_to_a_file_is_not_taken(fake_run, terminal, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    term = terminal()
    run = fake_run()
    live = _live(term, run)
    live.start(run.shape)
    print("for the file")
    live.end(fake_run().history, None)
    assert file.getvalue() == "for the file\n"
    assert "file" not in term.read()


def test_an_epoch_without_the_announced_evaluation_gets_its_line(fake_run, terminal):
    term, run = terminal(), fake_run()
    live = _live(term, run)
    live.start(run.shape)
    records = run.records
    run.records = lambda epoch: records(epoch)[:1]
    for epoch in (1, 2, 3):
        run.drive_epoch(epoch, [live])
    live.end(run.history, None)
    assert [line[:9] for line in term.screen().lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    before = _SGR.sub("", term.read()).split("epoch 2/3  ━")[0]
    assert "epoch 1/3  loss" in before  # with the next epoch's first step, not with its end


def test_a_step_that_does_not_draw_costs_next_to_nothing(fake_run, terminal):
    run = fake_run(steps=10**9)
    live = Live(terminal().stream)
    live.start(run.shape)
    progress = Progress(1, 1, 1, 512, dict)
    began = time.perf_counter()
    for _ in range(20000):
        live.step(progress)
    assert (time.perf_counter() - began) / 20000 < 2e-5
    live.end(run.history, None)
