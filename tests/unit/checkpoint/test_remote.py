"""Runs at URLs: whole or not seen, the newest found by listing, an overtaken world writes nothing that counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch

from wholebatch.checkpoint import Background, RemoteFence, RemoteStore, store_at, take, taken_by_earlier_world
from wholebatch.core import launched
from wholebatch.core.errors import CheckpointError, FencedError, InputTypeError, RunFolderError
from wholebatch.core.url import Url, location


@pytest.fixture(params=["memory", "file", "dir"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "memory":
        url = Url(f"memory://{uuid.uuid4().hex}/run")
        yield url
        url.remove()
    else:
        yield Url({"file": f"file://{tmp_path}/run", "dir": f"dir::file://{tmp_path}/run"}[request.param])


def state(value: float) -> dict[str, Any]:
    return {"weight": torch.full((50,), value), "note": "a"}


def steps(store: RemoteStore) -> list[tuple[int, int]]:
    return [(checkpoint.generation, checkpoint.step) for checkpoint in store.list()]


def test_saved_found_pruned(run: Url) -> None:
    said: list[str] = []
    store = store_at(run, keep_last=2, keep_best=True, say=said.append)
    assert isinstance(store, RemoteStore)
    assert store.newest() is None
    with pytest.raises(CheckpointError, match="there is no good checkpoint"):
        store.load()
    scores = [0.1, 0.9, 0.3, 0.2, float("nan")]
    for step, score in enumerate(scores, start=1):
        assert store.save(state(step), step=step, score=score)
    assert steps(store) == [(1, 2), (1, 4), (1, 5)]  # the best, and the last two
    assert len([name for name in (run / "checkpoints").names() if name.startswith("step-")]) == 3
    assert torch.equal(store_at(run).load()["weight"], torch.full((50,), 5.0))
    assert store.save(state(9), step=5)  # it stands, and is kept as it is
    assert float(store.load()["weight"][0]) == 5.0
    assert said == []
    with pytest.raises(InputTypeError, match="cannot hold"):
        store.save({"a": object()}, step=6)


def test_in_the_background(run: Url) -> None:
    weight = torch.ones(3)
    with Background(store_at(run, fence=take(run))) as background:
        background.save({"weight": weight}, step=1)
        weight.zero_()
    assert torch.equal(store_at(run).load()["weight"], torch.ones(3))


@pytest.mark.parametrize("what", ["flipped", "short", "no manifest", "other manifest"])
def test_what_is_damaged_is_passed_over(run: Url, what: str) -> None:
    said: list[str] = []
    store = store_at(run, say=said.append)
    for step in (1, 2):
        store.save(state(step), step=step)
    newest = run / "checkpoints" / store.newest().path.name
    file = newest / ("manifest.json" if "manifest" in what else "state.pt")
    data = bytearray(file.read_bytes())
    if what == "no manifest":
        file.unlink()
    elif what == "short":
        file.write_bytes(bytes(data[:-1]))
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(bytes(data))
    assert store_at(run, say=said.append).newest().step == 1
    assert float(store_at(run, say=said.append).load()["weight"][0]) == 1.0
    if what == "no manifest":  # a save that was cut off is nothing to speak of
        assert said == []
    else:
        assert newest.name in said[0]
        assert "is used instead" in said[0]
    assert store.save(state(2), step=2)  # once more, in its place
    assert store_at(run).newest().step == 2


class Cut(Exception):
    """The moment at which a process is killed."""


@pytest.mark.parametrize("at", range(1, 8))
def test_a_save_that_is_cut_off_leaves_the_one_before(run: Url, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    store = store_at(run, keep_last=1)
    store.save(state(1), step=1)
    calls = 0
    for name in ("write_bytes", "open", "unlink", "remove", "names"):
        inner = getattr(Url, name)

        def counted(self: Url, *arguments: Any, inner: Any = inner) -> Any:
            nonlocal calls
            calls += 1
            if calls == at:
                raise Cut
            return inner(self, *arguments)

        monkeypatch.setattr(Url, name, counted)
    try:
        store.save(state(2), step=2)
    except Cut:
        pass
    finally:
        monkeypatch.undo()
    checkpoint = store_at(run).newest()
    assert checkpoint is not None
    assert float(store_at(run).load(checkpoint)["weight"][0]) == checkpoint.step
    later = store_at(run, keep_last=1)  # the next world clears away what is left
    assert later.save(state(3), step=3)
    assert steps(later) == [(2, 3)]


WRITER = """
import sys, torch
from wholebatch.checkpoint import store_at
from wholebatch.core.url import Url
store = store_at(Url(sys.argv[1]))
for step in range(1, 10_000):
    store.save({"weight": torch.full((200_000,), float(step))}, step=step)
    print(step, flush=True)
"""


def test_killed_while_it_saves(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/run"
    process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    try:
        said = [int(process.stdout.readline()) for _ in range(3)]
        time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split()]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    found = store_at(Url(url)).newest()
    assert found.step >= said[-1]
    assert torch.equal(store_at(Url(url)).load(found)["weight"], torch.full((200_000,), float(found.step)))


def test_a_newer_world_takes_over_at_once(run: Url) -> None:
    old, new = store_at(run, fence=take(run)), None
    old.save(state(1), step=5)
    new = store_at(run, fence=take(run))
    assert new.load()["weight"][0] == 1
    with pytest.raises(FencedError, match="generation 1"):
        old.save(state(2), step=6)
    with pytest.raises(FencedError):
        old.fence.replace(run / "config.yaml", b"x\n")
    old.fence.append(run / "config.yaml", b"x\n")  # in memory
    with pytest.raises(FencedError):
        old.fence.flush()
    old.fence.close()
    assert not (run / "config.yaml").exists()
    assert new.save(state(3), step=6)
    assert steps(new) == [(1, 5), (2, 6)]


def test_a_world_that_wakes_up_between_look_and_write_changes_nothing(run: Url, monkeypatch: Any) -> None:
    old, new = store_at(run, fence=take(run)), store_at(run, fence=take(run))
    new.save(state(7), step=3)
    monkeypatch.setattr(RemoteFence, "check", lambda self: None)  # it looked just before it was overtaken
    old.save(state(1), step=99)
    monkeypatch.undo()
    assert store_at(run).newest().step == 3
    assert store_at(run).load()["weight"][0] == 7
    assert new.save(state(8), step=4)
    assert steps(store_at(run))[-1] == (2, 4)


def test_two_that_take_at_once(run: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take(run)
    tokens = iter(["aaaa", "bbbb"])
    monkeypatch.setattr("wholebatch.checkpoint.remote_fence.secrets.token_hex", lambda n: next(tokens))
    monkeypatch.setattr("wholebatch.checkpoint.remote_fence._generations", _as_of(run))
    with pytest.raises(FencedError):
        RemoteFence.take(run)
    monkeypatch.undo()
    with pytest.raises(FencedError):
        first.check()


def _as_of(run: Url) -> Any:
    """What a taker sees whose rival writes right after it: the rival has the higher token."""
    from wholebatch.checkpoint import remote_fence

    inner, calls = remote_fence._generations, 0

    def seen(folder: Url) -> list[tuple[int, str]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            (run / "checkpoints" / ".generation-00000002-bbbb").write_bytes(b"{}")
        return inner(folder)

    return seen


def test_lines_grow_in_memory_and_are_written_now_and_then(run: Url) -> None:
    now = 0.0
    fence = take(run)
    fence._clock = lambda: now
    fence._next = 10.0
    path = run / "history.jsonl"
    fence.append(path, b"1\n")
    assert not path.exists()
    now = 11.0
    fence.append(path, b"2\n")
    assert path.read_bytes() == b"1\n2\n"
    fence.append(path, b"3\n")
    fence.close()
    assert path.read_bytes() == b"1\n2\n3\n"
    again = take(run)
    again.append(path, b"4\n")
    again.flush()
    assert path.read_bytes() == b"1\n2\n3\n4\n"


def test_a_store_that_fails_says_so_and_training_goes_on(run: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    store = store_at(run, say=said.append)
    store.save(state(1), step=1)

    class Strange(Exception):
        """What a package of its own raises."""

    def refuse(*_: Any, **__: Any) -> None:
        raise Strange("no route to the bucket")

    monkeypatch.setattr(type(run._fs), "open", refuse)
    assert store.save(state(2), step=2) is False
    assert "step 2 could not be saved" in said[0]
    assert "no route to the bucket" in said[0]
    monkeypatch.undo()
    assert store.newest().step == 1


def test_worlds_of_one_launch_know_each_other(run: Url, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not taken_by_earlier_world(run)
    take(run).close()
    assert not taken_by_earlier_world(run)  # nobody launched us
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-1")
    take(run).close()
    assert not taken_by_earlier_world(run)  # it was this very process
    monkeypatch.setattr(launched, "process", lambda: "another")
    assert taken_by_earlier_world(run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-2")
    assert not taken_by_earlier_world(run)


@pytest.mark.parametrize(("url", "said"), [("s3://bucket/run", "s3fs"), ("nosuch://a/b", "nosuch")])
def test_what_cannot_be_used_is_said(url: str, said: str) -> None:
    if url.startswith("s3") and _has("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(RunFolderError, match=said):
        location(url)


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_paths_are_no_urls() -> None:
    for text in ("runs/a", "/a/b", "C:\\run", "a:b", "./memory:/x", os.curdir):
        assert location(text) == Path(text)
