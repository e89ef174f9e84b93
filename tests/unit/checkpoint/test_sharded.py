"""Tensors in parts, in one process: what the folder holds, how it is read, what damages it, what is not trusted."""

import errno
import functools
import io
import json
import os
import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import distributed
from torch.distributed.checkpoint import filesystem, metadata

from wholebatch.checkpoint import Background, Fence, Part, RunState, Store, Together, read_parts, take_out
from wholebatch.checkpoint import sharded as under_test
from wholebatch.core.errors import CheckpointError, FencedError, InputTypeError, PeerError
from wholebatch.core.processes import Group
from wholebatch.step.split_state import model_to_load

WHOLE = {
    "model.weight": torch.arange(35, dtype=torch.float64).view(7, 5),
    "model.bias": torch.arange(7, dtype=torch.bfloat16),
    "model.scale": torch.tensor(3.0),
    "model.none": torch.empty(0, 4),
    "optimizer.0.momentum": torch.arange(35, dtype=torch.float64).view(7, 5) + 100,
}


@pytest.fixture
def group():
    """A world of one process, which saves together with itself."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield Group()
    distributed.destroy_process_group()


def cut(name, tensor):
    """A part of three pieces, of unequal rows."""
    if tensor.ndim == 0 or not tensor.numel():
        return Part.whole(name, tensor)
    pieces = tuple(((start, *[0] * (tensor.ndim - 1)), tensor[start:stop]) for start, stop in [(4, 7), (0, 1), (1, 4)])
    return Part(name, tuple(tensor.shape), tensor.dtype, pieces)


def state_in_parts():
    parts = {name: cut(name, tensor) for name, tensor in WHOLE.items()}
    model = {name.removeprefix("model."): part for name, part in parts.items() if name.startswith("model.")}
    model |= {"tied": model["weight"], "plain": torch.ones(3)}
    return {"model": model, "optimizer": {"state": {0: {"momentum": parts["optimizer.0.momentum"], "step": 4}}}}


def save(store, group, step=1, **more):
    state, parts = take_out({**state_in_parts(), **more})
    return Together(store, group).save(state, parts, step=step)


@pytest.fixture
def saved(store, group):
    assert save(store, group)
    return store


def test_the_layout(saved, hidden):
    folder = saved.folder / "step-00000001"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["manifest.json", "shards/.metadata", "shards/__0_0.distcp", "state.pt"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(manifest["files"]) == files[1:]
    assert all(entry["size"] == (folder / name).stat().st_size for name, entry in manifest["files"].items())
    plain = torch.load(folder / "state.pt", weights_only=True)
    marker = {"in shards": "model.weight", "shape": [7, 5], "dtype": "float64"}
    assert plain["model"]["weight"] == plain["model"]["tied"] == marker
    assert torch.equal(plain["model"]["plain"], torch.ones(3))
    assert b".staging" not in (folder / "shards" / ".metadata").read_bytes()  # which is gone when it is read
    assert hidden(saved.run_dir) == []


def test_it_is_read_whole(saved, said):
    loaded = saved.load()
    for name, tensor in loaded["model"].items():
        wanted = WHOLE.get("model.weight" if name == "tied" else f"model.{name}", torch.ones(3))
        assert torch.equal(tensor, wanted)
        assert tensor.dtype == wanted.dtype
    assert loaded["model"]["tied"] is loaded["model"]["weight"]
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum"], WHOLE["optimizer.0.momentum"])
    assert loaded["optimizer"]["state"][0]["step"] == 4
    assert said == []


def test_it_is_read_in_other_parts(saved):
    checkpoint = saved.newest()
    loaded = saved.load(checkpoint, whole=False)
    assert loaded["model"]["weight"] == Part("model.weight", (7, 5), torch.float64)
    target = torch.zeros(7, 5, dtype=torch.float64)
    pieces = (((0, 3), target[:, 3:]), ((2, 0), target[2:5, :3]))  # columns, and some rows of what is left
    again = torch.zeros(7, 5, dtype=torch.float64)
    wanted = [Part("model.weight", (7, 5), torch.float64, pieces), Part.whole("model.weight", again)]
    read_parts(checkpoint.shards, wanted)
    assert torch.equal(again, WHOLE["model.weight"])
    assert torch.equal(target[:, 3:], again[:, 3:])
    assert torch.equal(target[2:5], again[2:5])
    assert not target[:2, :3].any()


def test_torch_reads_it_by_itself(saved, group):
    state = {"model.weight": torch.zeros(7, 5, dtype=torch.float64)}
    dcp.load(state, checkpoint_id=saved.folder / "step-00000001" / "shards")
    assert torch.equal(state["model.weight"], WHOLE["model.weight"])


def test_shapes_and_types_are_compared_in_markers(saved):
    more = {"optimizer": {}, "step": {}, "loader": {}, "seed": 0, "batch_size": 1}
    found = RunState(model=saved.load(whole=False)["model"], **more)
    assert found.check_same(RunState(model=saved.load()["model"], **more)) == []
    other = RunState(model={**saved.load()["model"], "bias": torch.zeros(7)}, **more)
    with pytest.raises(CheckpointError, match=r"model\['bias'\] was \(7,\) bfloat16 and is now \(7,\) float32"):
        found.check_same(other)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "does not match its checksum"),
        (lambda path: os.truncate(path, 100), "has 100 bytes instead of"),
        (os.remove, "is missing"),
    ],
)
def test_damage_is_seen(saved, group, said, file, damage, reason):
    assert save(saved, group, step=2)
    checkpoint = saved.newest()
    damage(checkpoint.shards / file)
    with pytest.raises(CheckpointError, match=f"is damaged .*{reason}"):
        saved.load(checkpoint)
    assert saved.newest().step == 1
    assert len(said) == 1
    assert f"step-00000002 (shards/{file} {reason}" in said[0]
    assert "step-00000001 is used instead" in said[0]
    assert save(saved, group, step=2)  # replaced
    assert saved.newest().step == 2


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Part.whole("model.other", torch.zeros(2)), "model.other is not in the checkpoint"),
        (
            Part.whole("model.weight", torch.zeros(7, 4).double()),
            r"model.weight is \(7, 5\) torch.float64 in the check",
        ),
        (Part.whole("model.weight", torch.zeros(7, 5)), r"expected \(7, 5\) torch.float32"),
    ],
)
def test_other_tensors_are_refused(saved, wanted, message):
    with pytest.raises(CheckpointError, match=message):
        read_parts(saved.newest().shards, [wanted])


def test_ctrl_c_is_no_damage(saved, monkeypatch):
    monkeypatch.setattr(under_test._Wanted, "lookup_tensor", fails(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        saved.load()


def test_a_model_of_another_type_takes_it(saved):
    """As a whole checkpoint is taken, where that difference was allowed."""
    model = torch.nn.Linear(5, 7)  # in single precision
    state = {"weight": saved.load(whole=False)["model"]["weight"], "bias": torch.zeros(7)}
    found, wanted = model_to_load(model, state)
    read_parts(saved.newest().shards, wanted)
    model.load_state_dict(found)
    assert torch.equal(model.weight, WHOLE["model.weight"].float())


def test_a_hole_is_no_tensor(saved):
    path = saved.newest().shards / ".metadata"
    found = pickle.loads(path.read_bytes())
    found.state_dict_metadata["model.weight"].chunks.pop()
    path.write_bytes(pickle.dumps(found))
    with pytest.raises(CheckpointError, match="weight is not whole"):
        read_parts(path.parent, [Part.whole("model.weight", torch.zeros(7, 5).double())])


# what is not trusted ------------------------------------------------------------------------------


class Hostile:
    """Makes a file when it is unpickled by whoever believes it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_metadata(path):
    """What an attacker may put in place of the metadata, with checksums to match."""
    mark = str(path.with_name("ran"))
    sound = pickle.loads(path.read_bytes())
    yield Hostile(eval, f"__import__('os').mkdir({mark!r})")
    yield Hostile(functools.partial, os.mkdir, mark)
    yield Hostile(torch.load, mark)
    yield [sound, {"a": Hostile(os.mkdir, mark)}]
    sound.planner_data = Hostile(os.mkdir, mark)
    yield sound


def test_hostile_metadata_runs_nothing(saved):
    folder = saved.newest().shards
    path = folder / ".metadata"
    wanted = [Part.whole("model.weight", torch.zeros(7, 5).double())]
    for thing in hostile_metadata(path):
        path.write_bytes(pickle.dumps(thing))
        with pytest.raises(CheckpointError, match=r"names [\w.]+, which does not belong there"):
            read_parts(folder, wanted)
        assert not (folder / "ran").exists()
    with pytest.raises(CheckpointError, match=r"names posix\.mkdir"):
        read_parts(folder, wanted)
    pickle.loads(path.read_bytes())
    assert (folder / "ran").exists()  # what was refused is an attack


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: found.state_dict_metadata.update({"a": metadata.BytesStorageMetadata()}),
            "BytesStorageMetadata",
        ),
        (
            lambda found: setattr(found, "state_dict_metadata", {"a": metadata.StorageMeta()}),
            "no description of tensors",
        ),
        (lambda found: move(found, "../state.pt"), "no description of tensors"),
        (lambda found: move(found, "/etc/passwd"), "no description of tensors"),
        (lambda found: move(found, "__0_0.distcp", ["stream.zstd"]), "no description of tensors"),
        (lambda found: setattr(found, "storage_data", None), "cannot be read: AttributeError"),
        (lambda found: setattr(found, "storage_data", {}), "cannot be read: KeyError"),
    ],
)
def test_metadata_that_points_elsewhere_is_refused(saved, change, message):
    path = saved.newest().shards / ".metadata"
    found = pickle.loads(path.read_bytes())
    change(found)
    path.write_bytes(pickle.dumps(found))
    with pytest.raises(CheckpointError, match=message):
        read_parts(path.parent, [Part.whole("model.weight", torch.zeros(7, 5).double())])


def move(found, file, extensions=None):
    for index, entry in found.storage_data.items():
        found.storage_data[index] = filesystem._StorageInfo(file, entry.offset, entry.length, extensions)


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps({"a": 1}), pickle.dumps(metadata.StorageMeta())])
def test_broken_metadata_is_refused(saved, data):
    path = saved.newest().shards / ".metadata"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        read_parts(path.parent, [Part.whole("model.weight", torch.zeros(7, 5).double())])


def test_a_member_of_an_enumeration_by_getattr():
    """As the first releases of Python 3.11 pickle it."""

    class Asked:
        def __reduce__(self):
            return getattr, (metadata._MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST")

    read = under_test._Unpickler
    file = io.BytesIO(pickle.dumps(Asked()))
    assert read(file).load() is metadata._MEM_FORMAT_ENCODING.TORCH_CHANNELS_LAST
    with pytest.raises(CheckpointError, match="asks for '__class__'"):
        read(io.BytesIO(pickle.dumps(Hostile(getattr, torch.Size, "__class__")))).load()


# what goes wrong ----------------------------------------------------------------------------------


def fails(error):
    def failing(*_):
        raise error

    return failing


@pytest.mark.parametrize(
    ("call", "file", "rows"),
    [
        ("write", "__0_0", 1),
        ("write", "__0_0", 300_000),  # more than is collected before it is written
        ("fsync", "__0_0", 1),
        ("open", "__0_0", 1),
        ("write", ".metadata.tmp", 1),
    ],
)
def test_a_full_disk_leaves_what_there_was(saved, group, said, hidden, tree, monkeypatch, call, file, rows):
    before = tree(saved.folder / "step-00000001")
    real = getattr(os, call)

    def full(first, *more, **named):
        opened = str(first) if call == "open" else os.readlink(f"/proc/self/fd/{first}")
        if file in opened:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(first, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert save(saved, group, step=2, large=Part.whole("large", torch.zeros(rows, 8))) is False
    assert len(said) == 1
    assert "the checkpoint of step 2 could not be saved" in said[0]
    assert "process 0: No space left on device; the older ones stay" in said[0]
    assert tree(saved.folder / "step-00000001") == before
    assert [one.step for one in saved.list()] == [1]
    assert hidden(saved.run_dir) == []
    assert save(saved, group, step=2)


def test_a_good_one_is_kept_as_it_is(saved, group, tree):
    before = tree(saved.folder / "step-00000001")
    assert save(saved, group)
    assert tree(saved.folder / "step-00000001") == before


def test_an_overtaken_world_publishes_nothing(saved, group, hidden):
    newer = Fence.take(saved.run_dir)
    with pytest.raises(FencedError):
        save(saved, group, step=2)
    assert [one.step for one in saved.list()] == [1]
    newer.close()


def test_overtaken_while_writing(saved, group, monkeypatch):
    fsync = os.fsync
    newer = []

    def taken(descriptor):
        if not newer and "__0_0" in os.readlink(f"/proc/self/fd/{descriptor}"):
            newer.append(Fence.take(saved.run_dir))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", taken)
    with pytest.raises(FencedError):
        save(saved, group, step=2)
    assert [one.step for one in saved.list()] == [1]
    newer[0].close()


def test_what_is_no_failure_of_a_disk_is_raised(saved, group, monkeypatch):
    monkeypatch.setattr(under_test, "_to_write", fails(KeyError("a bug")))
    with pytest.raises(PeerError, match="process 0 failed: KeyError: 'a bug'"):
        save(saved, group, step=2)
    assert [one.step for one in saved.list()] == [1]


def test_what_fails_while_writing_is_raised(saved, group, monkeypatch):
    monkeypatch.setattr(under_test._Saved, "lookup_object", fails(MemoryError("no room")))
    with pytest.raises(PeerError, match="process 0 failed: MemoryError: no room"):
        save(saved, group, step=2)
    assert [one.step for one in saved.list()] == [1]


def test_later_updates_are_not_saved(store, group):
    state = state_in_parts()
    weight = state["model"]["weight"]
    own = weight.holding([tensor.clone() for tensor in weight.tensors])
    state["model"] |= {"weight": own, "tied": own}
    with Background(Together(store, group)) as background:
        background.save(state, step=1)
        for tensor in own.tensors:
            tensor.zero_()
        assert background.wait()
    assert torch.equal(store.load()["model"]["weight"], WHOLE["model.weight"])


def test_parts_are_no_state_of_one_process(store):
    with pytest.raises(InputTypeError, match="Part, which a checkpoint cannot hold"):
        store.save(state_in_parts(), step=1)


def test_a_view_does_not_bring_its_storage(store, group):
    large = torch.zeros(1_000_000)
    part = Part("model.a", (1_000_000,), torch.float32, (((5,), large[5:15]),))
    state, parts = take_out({"a": part})
    assert Together(store, group).save(state, parts, step=1)
    assert store.newest().manifest["files"]["shards/__0_0.distcp"]["size"] < 10_000


def test_a_copied_folder_is_read(saved, tmp_path):
    shutil.copytree(saved.run_dir, tmp_path / "other")
    assert torch.equal(Store(tmp_path / "other").load()["model"]["weight"], WHOLE["model.weight"])
