"""The right to write: taken at once, lost for good, and what the loser cannot do."""

import errno
import os
import shutil
import threading

import pytest

from wholebatch.checkpoint import Fence
from wholebatch.core.errors import FencedError, WholebatchError


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_generations_rise_also_over_closed_worlds(run):
    for generation in (1, 2, 3):
        fence = Fence.take(run)
        assert fence.generation == generation
        assert fence.holds()
        if generation != 2:
            fence.close()
            assert not fence.holds()
    assert [path.name for path in (run / "checkpoints").iterdir()] == [".generation"]


def test_a_loser_can_do_nothing(run, tree):
    old = Fence.take(run)
    old.append(run / "history.jsonl", b"1\n")
    old.replace(run / "note", b"a")
    staged = old.stage("folder")
    (staged / "file").write_text("x")
    new = Fence.take(run)
    before = tree(run)
    for write in (
        lambda: old.check(),
        lambda: old.stage("again"),
        lambda: old.publish(staged, run / "folder"),
        lambda: old.discard(run / "note"),
        lambda: old.replace(run / "note", b"b"),
        lambda: old.append(run / "history.jsonl", b"2\n"),
        lambda: old.append(run / "other.jsonl", b"2\n"),
    ):
        with pytest.raises(FencedError, match=r"generation 1.*generation 2 \(process \d+ on "):
            write()
    old.close()
    assert tree(run) == before
    assert issubclass(FencedError, WholebatchError)
    new.check()
    new.close()


def test_a_write_between_check_and_rename_goes_nowhere(run, tree):
    """Without any check: a rename under way, an open descriptor, a folder held open."""
    old = Fence.take(run)
    old.append(run / "history.jsonl", b"1\n")
    staged = old.stage("folder")
    (staged / "file").write_text("x")
    held = os.open(old.staging, os.O_RDONLY)
    descriptor = old._journals[run / "history.jsonl"]
    new = Fence.take(run)
    before = tree(run)
    with pytest.raises(FileNotFoundError):
        os.rename(staged, run / "folder")
    with pytest.raises(FileNotFoundError):  # as by a network client that looked the folder up before
        os.rename(staged.name, run / "folder", src_dir_fd=held)
    with pytest.raises(FileNotFoundError):
        os.mkdir("fresh", dir_fd=held)
    os.write(descriptor, b"2\n")
    assert os.fstat(descriptor).st_nlink == 0
    assert tree(run) == before
    os.close(held)
    old.close()
    new.close()


def test_a_journal_goes_on_without_a_torn_line(run):
    run.mkdir()
    for content, good in [
        (b"1\n2\n3", b"1\n2\n"),
        (b"1", b""),
        (b"", b""),
        (b"1\n", b"1\n"),
        (b"a\n" * 700_000 + b"b", b"a\n" * 700_000),
    ]:
        (run / "history.jsonl").write_bytes(content)
        with Fence.take(run) as fence:
            assert (run / "history.jsonl").read_bytes() == good
            fence.append(run / "history.jsonl", b"new\n")
            assert (run / "history.jsonl").read_bytes() == good + b"new\n"


def test_appending_is_all_or_nothing(run, monkeypatch):
    with Fence.take(run) as fence:
        fence.append(run / "history.jsonl", b"1\n")
        write = os.write

        def full(descriptor, data):
            if len(data) > 3:
                return write(descriptor, data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            fence.append(run / "history.jsonl", b"23456\n")
        monkeypatch.undo()
        fence.append(run / "history.jsonl", b"7\n")
        assert (run / "history.jsonl").read_bytes() == b"1\n7\n"


def test_a_replaced_journal_is_appended_to(run):
    with Fence.take(run) as fence:
        fence.append(run / "history.jsonl", b"1\n2\n")
        fence.replace(run / "history.jsonl", b"1\n")
        fence.append(run / "history.jsonl", b"3\n")
        assert (run / "history.jsonl").read_bytes() == b"1\n3\n"


def test_a_failed_replacement_leaves_the_file(run, monkeypatch):
    with Fence.take(run) as fence:
        fence.replace(run / "note", b"a")

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        for name in ("write", "fsync", "rename"):
            with monkeypatch.context() as patch:
                patch.setattr(os, name, full)
                with pytest.raises(OSError, match="No space"):
                    fence.replace(run / "note", b"b")
            assert (run / "note").read_bytes() == b"a"
            assert list(fence.staging.iterdir()) == []


def test_other_errors_are_not_mistaken_for_a_lost_folder(run):
    with Fence.take(run) as fence:
        staged = fence.stage("x")
        with pytest.raises(FileNotFoundError):
            fence.publish(staged, run / "no" / "such" / "folder")
        fence.discard(run / "nothing")  # nothing to remove
        fence.check()


def test_discard_removes_files_and_folders(run):
    with Fence.take(run) as fence:
        fence.replace(run / "note", b"a")
        (run / "folder" / "deep").mkdir(parents=True)
        (run / "folder" / "deep" / "file").write_text("x")
        fence.discard(run / "note")
        fence.discard(run / "folder")
        assert sorted(os.listdir(run)) == ["checkpoints"]
        assert list(fence.staging.iterdir()) == []


def test_a_removed_run_folder_is_said(run):
    fence = Fence.take(run)
    shutil.rmtree(run)
    with pytest.raises(FencedError, match="closed, moved or removed"):
        fence.append(run / "history.jsonl", b"1\n")
    assert not run.exists()


def test_what_killed_worlds_left_is_cleaned(run):
    folder = run / "checkpoints"
    (folder / ".fenced-00000001-ab" / "0-step").mkdir(parents=True)
    (folder / ".staging-00000004-cd" / "0-step").mkdir(parents=True)
    with Fence.take(run) as fence:
        assert fence.generation == 5
        assert sorted(os.listdir(folder)) == [".generation", fence.staging.name]


def test_a_relative_folder_stays_where_it_was(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fence = Fence.take("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fence.replace(fence.run_dir / "note", b"a")
    assert (run / "note").exists()
    fence.close()


def test_of_many_that_take_at_once_one_holds(run):
    for _ in range(15):
        taken, failed = [], []
        start = threading.Barrier(6)

        def take(taken=taken, failed=failed, start=start):
            start.wait()
            try:
                taken.append(Fence.take(run))
            except FencedError as error:
                failed.append(error)

        threads = [threading.Thread(target=take) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) + len(failed) == 6
        assert sum(fence.holds() for fence in taken) == 1
        for fence in taken:
            fence.close()
