"""Saving beside the training: a snapshot, one at a time, errors at the next call, no thread left."""

import errno
import os
import threading

import pytest
import torch

from wholebatch.checkpoint import Background, Fence, Snapshot, Store
from wholebatch.core.errors import FencedError, InputTypeError


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path, say=lambda line: None, fence=Fence.take(tmp_path))
    yield store
    store.fence.close()


class Gate:
    """Holds ``store.save`` until it is opened."""

    def __init__(self, store, monkeypatch):
        self.open, self.entered, self.inside, self.most = threading.Event(), threading.Event(), 0, 0
        save = store.save

        def held(state, **more):
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.entered.set()
            assert self.open.wait(10)
            try:
                return save(state, **more)
            finally:
                self.inside -= 1

        monkeypatch.setattr(store, "save", held)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "wholebatch-checkpoint"]


def test_later_updates_are_not_saved(store, monkeypatch):
    gate = Gate(store, monkeypatch)
    model = torch.nn.Linear(300, 300)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 300)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "list": [1]}
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = optimizer.state_dict()["state"][0]["momentum_buffer"].clone()
    with Background(store) as background:
        background.save(state, step=1)
        assert gate.entered.wait(10)
        optimizer.step()
        state["list"].append(2)
        state["optimizer"]["param_groups"][0]["lr"] = 7.0
        gate.open.set()
        assert background.wait()
    loaded = store.load()
    assert all(torch.equal(loaded["model"][name], value) for name, value in expected.items())
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert loaded["optimizer"]["param_groups"][0]["lr"] == 0.1
    assert loaded["list"] == [1]


def test_a_second_save_waits_for_the_first(store, monkeypatch, state):
    gate = Gate(store, monkeypatch)
    background = Background(store)
    background.save(state(1), step=1)
    assert gate.entered.wait(10)
    assert len(threads()) == 1
    second = threading.Thread(target=lambda: background.save(state(2), step=2))
    second.start()
    second.join(0.05)
    assert second.is_alive()
    assert len(threads()) == 1
    gate.open.set()
    second.join(10)
    background.close()
    assert [checkpoint.step for checkpoint in store.list()] == [1, 2]
    assert gate.most == 1
    assert threads() == []


def test_no_thread_is_left_without_a_close(store, state):
    background = Background(store)
    background.save(state(1), step=1)
    thread = background._thread
    assert not thread.daemon  # an interpreter that ends waits for it
    thread.join(10)
    assert threads() == []
    background.close()
    background.close()


@pytest.mark.parametrize("call", ["save", "wait", "close", "__exit__"])
def test_errors_come_out_of_the_next_call_once(store, state, call):
    background = Background(store)
    newer = Fence.take(store.run_dir)
    background.save(state(1), step=1)
    arguments = {"save": (state(2),), "__exit__": (None, None, None)}.get(call, ())
    with pytest.raises(FencedError):
        getattr(background, call)(*arguments, **({"step": 2} if call == "save" else {}))
    assert background.wait() is False
    assert threads() == []
    assert store.list() == []
    newer.close()


def test_an_error_on_its_way_is_not_hidden(store, state):
    newer = Fence.take(store.run_dir)
    background = Background(store)
    background.save(state(1), step=1)
    background.__exit__(KeyError, KeyError("first"), None)
    assert background.wait() is False
    newer.close()


def test_a_full_disk_is_answered(store, state, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with Background(store) as background:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            background.save(state(1), step=1)
            assert background.wait() is False
        background.save(state(2), step=2)
        assert background.wait() is True


def test_strangers_are_refused_at_once(store):
    with Background(store) as background, pytest.raises(InputTypeError, match=r"state\['x'\]"):
        background.save({"x": {1, 2}}, step=1)


def test_a_snapshot_keeps_what_is_one():
    tied = torch.ones(3)
    copied = Snapshot({"a": tied, "b": tied, "c": tied[:2], "d": [tied.view(3, 1)], "e": torch.empty(0)}).ready()
    assert copied["a"] is copied["b"]
    assert copied["a"] is not tied
    tied.zero_()
    assert [copied[name].sum().item() for name in "abc"] == [3, 3, 2]
    assert copied["d"][0].shape == (3, 1)
