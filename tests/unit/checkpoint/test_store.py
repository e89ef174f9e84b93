"""Checkpoints: the layout, what is kept, what damages them."""

import json
import os
import random
import shutil

import pytest
import torch

from wholebatch.checkpoint import Fence, Store
from wholebatch.core.errors import CheckpointError, FencedError, InputError, InputTypeError
from wholebatch.version import __version__


def names(store):
    return [checkpoint.path.name for checkpoint in store.list()]


def test_the_layout(store, state, hidden, said):
    assert store.save(state(120), step=120, score=0.5)
    folder = store.run_dir / "checkpoints"
    assert sorted(os.listdir(folder / "step-00000120")) == ["manifest.json", "state.pt"]
    assert (folder / "latest").read_text() == "step-00000120\n"
    manifest = json.loads((folder / "step-00000120" / "manifest.json").read_text())
    assert (manifest["step"], manifest["score"], manifest["generation"]) == (120, 0.5, 1)
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["versions"]["wholebatch"] == __version__
    assert manifest["files"]["state.pt"]["size"] == (folder / "step-00000120" / "state.pt").stat().st_size
    assert hidden(store.run_dir) == []
    newest = store.newest()
    assert (newest.step, newest.score, newest.generation, newest.manifest) == (120, 0.5, 1, manifest)
    assert torch.equal(store.load(newest)["model"]["w"], state(120)["model"]["w"])
    assert said == []


def test_what_is_loaded_is_what_was_saved(store):
    generator = torch.Generator().manual_seed(3)
    tied = torch.randn(3, 2, generator=generator)
    state = {
        "tensors": [tied, tied, torch.randn(4, dtype=torch.bfloat16), torch.tensor(True), torch.empty(0, 3)],
        "numbers": {1: 2**70, "f": -0.0, "inf": float("inf"), "none": None, "bytes": b"\x00\xff", "text": "ü"},
        "rng": generator.get_state(),
        "strided": torch.randn(4, 3, generator=generator).t(),
        "tuple": (1, [True], {}),
        "gradient": torch.nn.Parameter(torch.ones(2)) * 2,
    }
    assert store.save(state, step=0)
    loaded = store.load()
    assert loaded["numbers"] == state["numbers"]
    assert type(loaded["tuple"]) is tuple
    assert loaded["tuple"] == state["tuple"]
    for mine, theirs in zip(state["tensors"], loaded["tensors"], strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)
    assert loaded["tensors"][0].data_ptr() == loaded["tensors"][1].data_ptr()
    assert torch.equal(loaded["strided"], state["strided"])
    assert torch.equal(loaded["rng"], state["rng"])
    assert not loaded["gradient"].requires_grad


def test_a_view_does_not_bring_its_storage(store):
    assert store.save({"part": torch.zeros(1_000_000)[:10]}, step=1)
    assert store.newest().manifest["files"]["state.pt"]["size"] < 10_000


def test_tensors_larger_than_the_buffer(store):
    large = torch.arange(700_000, dtype=torch.float32)
    assert store.save({"a": large, "b": torch.ones(3), "c": large + 1}, step=1)
    loaded = store.load()
    assert torch.equal(loaded["a"], large)
    assert torch.equal(loaded["c"], large + 1)


@pytest.mark.parametrize(
    ("bad", "named"),
    [({"a": [1, object()]}, r"state\['a'\]\[1\] is a builtins.object"), ({"a": {(1, frozenset()): 1}}, "the key"),
     ({"n": __import__("numpy").float64(1)}, r"numpy.float64.*\.item\(\)")],
)  # fmt: skip
def test_strangers_are_refused_by_name(store, bad, named):
    with pytest.raises(InputTypeError, match=named):
        store.save(bad, step=1)
    assert store.list() == []


@pytest.mark.parametrize(("step", "error"), [(-1, InputError), (1.0, InputTypeError), (True, InputTypeError)])
def test_steps_are_whole(store, step, error):
    with pytest.raises(error, match="step="):
        store.save({}, step=step)


def test_scores_are_numbers(store):
    with pytest.raises(InputTypeError, match="score='good'"):
        store.save({}, step=1, score="good")
    assert store.save({}, step=1, score=torch.tensor(0.25))
    assert store.save({}, step=2, score=float("nan"))
    assert store.save({}, step=3, score=float("-inf"))
    assert [checkpoint.score for checkpoint in store.list()[:2]] == [0.25, None]
    assert store.best().step == 1


@pytest.mark.parametrize("keep", [0, -1, 1.5, True])
def test_keep_last_is_at_least_one(tmp_path, keep):
    with pytest.raises(InputError, match="keep_last"):
        Store(tmp_path, keep_last=keep)


def test_an_empty_folder(tmp_path):
    store = Store(tmp_path / "none")
    assert (store.newest(), store.best(), store.list()) == (None, None, [])
    with pytest.raises(CheckpointError, match="no good checkpoint"):
        store.load()
    assert not (tmp_path / "none").exists()


# keeping ------------------------------------------------------------------------------------------


def test_the_last_ones_are_kept(store, state):
    for step in range(1, 7):
        store.save(state(step), step=step)
        assert [c.step for c in store.list()] == list(range(max(1, step - 2), step + 1))


def test_the_best_is_kept_besides(tmp_path, state):
    store = Store(tmp_path, keep_last=2, keep_best=True, fence=Fence.take(tmp_path))
    for step, score in enumerate([0.1, 0.9, 0.3, 0.9, 0.2, None, 0.1, 0.2], start=1):
        store.save(state(step), step=step, score=score)
    assert [c.step for c in store.list()] == [4, 7, 8]  # of two equal ones the later
    assert store.best().step == 4
    store.save(state(9), step=9, score=1.0)
    assert [c.step for c in store.list()] == [8, 9]
    store.fence.close()


def test_nothing_is_pruned_before_the_new_one_stands(tmp_path, state, monkeypatch):
    store = Store(tmp_path, keep_last=1, fence=Fence.take(tmp_path))
    store.save(state(1), step=1)
    seen = []
    discard = store.fence.discard

    def watched(path):
        seen.append((path.name, Store(tmp_path).newest().step, (tmp_path / "checkpoints/latest").read_text()))
        discard(path)

    monkeypatch.setattr(store.fence, "discard", watched)
    store.save(state(2), step=2)
    assert seen[-1] == ("step-00000001", 2, "step-00000002\n")
    store.fence.close()


def test_a_step_that_stands_is_kept_as_it_is(store, state, tree):
    store.save(state(5), step=5)
    before = tree(store.folder / "step-00000005")
    assert store.save(state(6), step=5)
    assert tree(store.folder / "step-00000005") == before


def test_a_damaged_one_is_replaced(store, state, said, hidden):
    store.save(state(5), step=5)
    flip(store.folder / "step-00000005" / "state.pt", 700)
    assert store.save(state(5), step=5)
    assert store.newest().step == 5
    assert torch.equal(store.load()["model"]["w"], state(5)["model"]["w"])
    assert (said, hidden(store.run_dir)) == ([], [])


def test_damaged_ones_do_not_count_among_the_last(tmp_path, state):
    store = Store(tmp_path, keep_last=2, say=lambda line: None, fence=Fence.take(tmp_path))
    for step in (1, 2):
        store.save(state(step), step=step)
    flip(store.folder / "step-00000002" / "state.pt", 700)
    assert store.newest().step == 1
    store.save(state(3), step=3)
    assert names(store) == ["step-00000001", "step-00000003"]
    store.fence.close()


def test_later_ones_are_left_alone(tmp_path, state):
    store = Store(tmp_path, keep_last=1, say=lambda line: None, fence=Fence.take(tmp_path))
    store.save(state(100), step=100)
    flip(store.folder / "step-00000100" / "state.pt", 700)
    for step in (50, 60):
        store.save(state(step), step=step)
        assert store.newest().step == step
        assert (store.folder / "step-00000100").exists()
    assert store.save(state(100), step=100)
    assert [c.step for c in store.list()] == [100]
    store.fence.close()


def test_later_ones_do_not_count_among_the_last(tmp_path, state):
    store = Store(tmp_path, keep_last=2, fence=Fence.take(tmp_path))
    for step in (100, 50, 60, 70):
        store.save(state(step), step=step)
    assert [c.step for c in store.list()] == [60, 70, 100]
    store.fence.close()


def test_steps_of_more_than_eight_digits(store, state):
    for step in (99_999_999, 100_000_000):
        assert store.save(state(step), step=step)
    assert store.newest().step == 100_000_000


# damage -------------------------------------------------------------------------------------------


def flip(path, offset, bit=0):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def test_flipped_bits_are_seen_wherever_they_are(store, state, said):
    for step in (1, 2):
        store.save(state(step), step=step)
    draw = random.Random(0)
    for name in ["state.pt"] * 60 + ["manifest.json"] * 60:
        path = store.folder / "step-00000002" / name
        place, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        said.clear()
        flip(path, place, bit)
        assert store.newest().step == 1, (name, place, bit)
        assert len(said) == 1
        assert "step-00000002" in said[0]
        assert name in said[0]
        assert "step-00000001 is used instead" in said[0]
        flip(path, place, bit)
        assert store.newest().step == 2


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["empty", "half", "one byte less", "one byte more", "missing", "a folder"])
def test_truncated_and_missing_files(store, state, said, name, how):
    for step in (1, 2):
        store.save(state(step), step=step)
    path = store.folder / "step-00000002" / name
    size = path.stat().st_size
    if how in ("missing", "a folder"):
        path.unlink()
        if how == "a folder":
            path.mkdir()
    else:
        os.truncate(path, {"empty": 0, "half": size // 2, "one byte less": size - 1, "one byte more": size + 1}[how])
    checkpoint = store.newest()
    assert checkpoint.step == 1
    assert len(said) == 1
    assert name in said[0]
    assert "\n" not in said[0]
    assert store.load(checkpoint)["step"] == 1
    with pytest.raises(CheckpointError, match=f"damaged.*{name}"):
        store.load(type(checkpoint)(store.folder / "step-00000002", 2, {}))


def test_a_folder_under_another_name_is_no_checkpoint_of_that_step(store, state, said):
    store.save(state(1), step=1)
    shutil.copytree(store.folder / "step-00000001", store.folder / "step-00000009")
    assert store.newest().step == 1
    assert "step-00000009 (manifest.json is of step 1)" in said[0]


def test_nothing_good_is_said(store, state, said):
    store.save(state(1), step=1)
    store.save(state(2), step=2)
    for step in (1, 2):
        os.truncate(store.folder / f"step-0000000{step}" / "state.pt", 3)
    assert store.newest() is None
    assert len(said) == 1
    assert "there is no good one" in said[0]


def test_latest_is_not_trusted(store, state):
    store.save(state(1), step=1)
    (store.folder / "latest").write_text("step-00000077\n")
    assert store.newest().step == 1
    (store.folder / "latest").unlink()
    assert store.newest().step == 1


def test_a_good_file_of_a_stranger_is_not_executed(store, tmp_path):
    """The checksums are those of the bytes; what is unpickled is restricted besides."""
    from wholebatch.checkpoint import durable, manifest

    folder = store.folder / "step-00000001"
    folder.mkdir()
    entry = durable.write_tensors(folder / "state.pt", {"path": tmp_path})
    (folder / "manifest.json").write_bytes(manifest.describe({"state.pt": entry}, step=1, score=None, generation=1))
    with pytest.raises(CheckpointError, match="undamaged, but torch"):
        store.load()


# on disk -----------------------------------------------------------------------------------------


def test_every_file_and_folder_is_flushed_before_it_is_named(store, state, monkeypatch):
    """What is renamed was flushed before, the folder it goes to after, in this order."""
    done = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor):
        done.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def watched_rename(source, target):
        done.append(("rename", str(source), str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    store.save(state(1), step=1)
    monkeypatch.undo()
    place = next(n for n, entry in enumerate(done) if entry[0] == "rename" and entry[2].endswith("step-00000001"))
    staged = done[place][1]
    assert [entry[1] for entry in done[:place] if entry[0] == "fsync"] == [
        f"{staged}/state.pt",
        f"{staged}/manifest.json",
        staged,
    ]
    assert done[place + 1] == ("fsync", str(store.folder))


def test_mistakes_in_the_middle_leave_nothing(store, monkeypatch, hidden, state):
    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("wholebatch.checkpoint.manifest.describe", broken)
    with pytest.raises(RuntimeError, match="broken"):
        store.save(state(1), step=1)
    assert (store.list(), hidden(store.run_dir)) == ([], [])


def test_a_store_of_an_older_world_raises(store, state, said):
    store.save(state(1), step=1)
    newer = Fence.take(store.run_dir)
    with pytest.raises(FencedError, match="generation 2"):
        store.save(state(2), step=2)
    with pytest.raises(FencedError):
        store.save(state(1), step=1)  # also where there would be nothing to write
    assert said == []
    newer.close()
