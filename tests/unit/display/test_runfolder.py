import errno
from pathlib import Path

import pytest

from wholebatch.checkpoint import Fence
from wholebatch.core.errors import InputError, LossError, RunFolderError
from wholebatch.core.record import History
from wholebatch.display import figures
from wholebatch.display.jsonl import NAME
from wholebatch.display.runfolder import RunFolder, read_history


@pytest.fixture
def said():
    return []


@pytest.fixture
def folder(tmp_path, said):
    return RunFolder(tmp_path / "runs" / "digits", texts={"config.yaml": "lr: 0.1\n"}, say=said.append)


def _names(path):
    """The files of a folder, without the one that the fence keeps."""
    return sorted(file.name for file in path.iterdir() if file.name != "checkpoints")


def test_a_run_leaves_its_folder(folder, fake_run, said, monkeypatch):
    monkeypatch.setattr(figures, "_draw", _cheap)
    run = fake_run()
    run.drive(folder)
    assert said == []
    assert _names(folder.path) == ["config.yaml", "curves.png", "curves.svg", NAME]
    assert read_history(folder.path).records == run.history.records
    assert (folder.path / "config.yaml").read_text() == "lr: 0.1\n"


def _cheap(figure, history, title):
    figure.clear()
    figure.text(0, 0, f"{title} {len(history)}")


def test_the_pictures_are_pictures(folder, fake_run, said):
    from PIL import Image

    fake_run(epochs=6).drive(folder)
    assert said == []
    with Image.open(folder.path / "curves.png") as picture:
        assert picture.size == (1280, 800)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 100
    svg = (folder.path / "curves.svg").read_text()
    assert svg.rstrip().endswith("</svg>")
    assert len(svg) > 10_000


def test_nothing_is_made_before_the_start(folder, tmp_path):
    assert list(tmp_path.iterdir()) == []
    folder.check()
    assert list(tmp_path.iterdir()) == []
    folder.end(History(), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["check", "prepare"])
def test_a_path_below_a_file(tmp_path, method):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "runs" / "x", tmp_path / "file"):
        with pytest.raises(
            RunFolderError, match=r"^the run folder .* cannot be written: Not a directory; choose"
        ) as found:
            getattr(RunFolder(path), method)()
        assert "\n" not in str(found.value)
        assert str(path) in str(found.value)
    assert _names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_an_impossible_name(tmp_path):
    with pytest.raises(RunFolderError, match="null"):
        RunFolder(str(tmp_path / "a\0b")).check()


@pytest.mark.parametrize("name", ["mkdir", "write_bytes"])
@pytest.mark.parametrize("method", ["check", "prepare"])
def test_a_system_that_refuses_leaves_nothing(folder, tmp_path, monkeypatch, name, method):
    real, calls = getattr(Path, name), []

    def refuse(self, *args, **options):
        calls.append(self)
        if name == "mkdir" and len(calls) == 1:
            return real(self, *args, **options)
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(RunFolderError, match="cannot be written: Permission denied"):
        getattr(folder, method)()
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_cannot_be_written_leaves_nothing(folder, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Fence, "replace", refuse)
    with pytest.raises(RunFolderError, match="No space left"):
        folder.prepare()
    assert list(tmp_path.iterdir()) == []


def test_another_run_is_refused_and_untouched(folder, fake_run, monkeypatch):
    monkeypatch.setattr(figures, "_draw", _cheap)
    fake_run().drive(folder)
    before = {file.name: file.read_bytes() for file in folder.path.iterdir() if file.is_file()}
    for method in ("check", "prepare"):
        with pytest.raises(RunFolderError, match=r"already holds a run .* resume=True"):
            getattr(RunFolder(folder.path, texts={"config.yaml": "other"}), method)()
    assert {file.name: file.read_bytes() for file in folder.path.iterdir() if file.is_file()} == before


def test_resume_goes_on_after_half_a_line(folder, fake_run, monkeypatch, said):
    seen = []
    monkeypatch.setattr(figures, "_draw", lambda figure, history, title: seen.append(len(history)))
    run = fake_run(epochs=2)
    run.drive(folder)
    with open(folder.path / NAME, "ab") as file:
        file.write(b'{"kind": "epo')
    again = RunFolder(folder.path, resume=True, say=said.append)
    again.start(run.shape)
    again.record(run.records(3)[0])
    again.end(run.history, None)
    assert read_history(folder.path).records == [*run.history.records, run.records(3)[0]]
    assert seen == [4, 5]  # the picture shows the whole run
    assert said == []


def test_wrong_input_before_the_first_record_leaves_nothing(folder, fake_run, tmp_path):
    folder.start(fake_run().shape)
    assert _names(folder.path) == ["config.yaml", NAME]
    folder.end(History(), LossError("the loss gave a mean"))
    assert list(tmp_path.iterdir()) == []


def test_wrong_input_takes_only_what_the_run_made(tmp_path, fake_run):
    path = tmp_path / "mine"
    path.mkdir()
    (path / "notes.txt").write_text("keep")
    folder = RunFolder(path, texts={"config.yaml": "x"})
    folder.start(fake_run().shape)
    folder.end(History(), InputError("wrong"))
    assert _names(path) == ["notes.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("x"), LossError("late")])
def test_a_run_that_was_cut_short_keeps_what_it_had(folder, fake_run, monkeypatch, error):
    monkeypatch.setattr(figures, "_draw", _cheap)
    run = fake_run()
    folder.start(run.shape)
    run.drive_epoch(1, [folder])
    folder.end(run.history, error)
    assert _names(folder.path) == ["config.yaml", "curves.png", "curves.svg", NAME]


def test_a_picture_that_cannot_be_drawn_is_said_once(folder, fake_run, monkeypatch, said):
    def fail(*_):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(figures, "_draw", fail)
    folder._every = 0.0
    run = fake_run()
    assert run.drive(folder) is None
    assert said == [f"the curves in {folder.path} cannot be drawn: RuntimeError: no font at all"]
    assert read_history(folder.path).records == run.history.records
    assert _names(folder.path) == ["config.yaml", NAME]


def test_a_warning_goes_to_standard_error_by_default(tmp_path, fake_run, monkeypatch, capsys):
    monkeypatch.setattr(figures, "_draw", lambda *_: 1 / 0)
    fake_run().drive(RunFolder(tmp_path / "run"))
    assert capsys.readouterr().err.count("\n") == 1


def test_pictures_come_at_a_limited_rate(tmp_path, fake_run, monkeypatch):
    drawn = []
    run = fake_run(epochs=20, steps=1, seconds=3.0)
    monkeypatch.setattr(figures, "_draw", lambda figure, history, title: drawn.append(run.now))
    run.drive(RunFolder(tmp_path / "run", clock=run.clock))
    assert drawn == [12.0, 24.0, 36.0, 48.0, 60.0, 60.0]


def test_slow_pictures_come_less_often(tmp_path, fake_run, monkeypatch):
    drawn = []
    run = fake_run(epochs=20, steps=1, seconds=3.0)

    def slow(figure, history, title):
        drawn.append(run.now)
        run.now += 2.0

    monkeypatch.setattr(figures, "_draw", slow)
    run.drive(RunFolder(tmp_path / "run", clock=run.clock))
    assert drawn == [12.0, 56.0, 64.0]  # two seconds of drawing: forty seconds until the next


def test_a_history_that_cannot_be_written_does_not_stop_training(folder, fake_run, monkeypatch, said):
    monkeypatch.setattr(figures, "_draw", _cheap)
    run = fake_run()
    folder.start(run.shape)
    real = folder._journal.flush

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    folder._journal.flush = full
    run.drive_epoch(1, [folder])
    assert len(said) == 1
    assert "cannot be written now" in said[0]
    folder._journal.flush = real
    run.drive_epoch(2, [folder])
    folder.end(run.history, None)
    assert read_history(folder.path).records == run.history.records
    assert len(said) == 1
