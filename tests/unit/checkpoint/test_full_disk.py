"""A disk that takes no more: the older checkpoints stay, nothing is left half-written, one line says so."""

import errno
import itertools
import os

import pytest
import torch

from wholebatch.checkpoint import Fence, Store


class FullDisk:
    """Lets ``free`` operations that need room through, then fails: once, or from then on."""

    def __init__(self, monkeypatch, free, stays):
        self.count, self.free, self.stays = 0, free, stays
        for name in ("open", "write", "fsync", "rename", "mkdir"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name, call):
        def wrapped(*arguments, **more):
            if name != "open" or arguments[1] & os.O_CREAT:
                self.count += 1
                if self.count == self.free + 1 or (self.stays and self.count > self.free):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **more)

        return wrapped


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("large", [False, True])
def test_a_full_disk_at_every_operation(tmp_path, state, stays, large, hidden, tree):
    said = []
    store = Store(tmp_path, keep_last=1, say=said.append, fence=Fence.take(tmp_path))
    elements = 400_000 if large else 10
    assert store.save(state(1, elements), step=1)
    refused = 0
    for free in itertools.count():
        old = tree(store.folder / f"step-{free + 1:08d}")
        said.clear()
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, free, stays)
            saved = store.save(state(free + 2, elements), step=free + 2)
        if disk.count <= free:
            break
        assert len(said) == 1
        assert "\n" not in said[0]
        assert "No space left on device" in said[0]
        assert not any(name.split("/")[-1].endswith(("json", "pt")) for name in hidden(tmp_path)), (
            free,
            hidden(tmp_path),
        )
        if not saved:
            refused += 1
            assert f"the checkpoint of step {free + 2} could not be saved" in said[0]
            assert tree(store.folder / f"step-{free + 1:08d}") == old
        latest = (store.folder / "latest").read_text().strip()
        assert latest in {checkpoint.path.name for checkpoint in store.list()}  # also where it could not be moved on
        said.clear()
        assert store.newest().step in {free + 1, free + 2}
        assert store.newest().step == free + 2 or not saved
        assert said == []
        assert store.save(state(free + 2, elements), step=free + 2)  # there is room again
    assert saved
    assert refused >= 8
    store.fence.close()
    assert hidden(tmp_path) == []


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, said, state):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "run", say=said.append)
    assert store.save(state(1), step=1) is False
    assert len(said) == 1


def test_short_writes(store, state, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:1000]))
    assert store.save(state(1, 5000), step=1)
    monkeypatch.undo()
    assert torch.equal(store.load()["model"]["w"], state(1, 5000)["model"]["w"])
