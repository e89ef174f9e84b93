import io
import os
import random
import signal
import stat
import tarfile
import time
from pathlib import Path

import pytest

from wholebatch.core.errors import DataError
from wholebatch.data import ImageNetTrain, ImageNetValidation
from wholebatch.data.imagenet import archives, listing, parts, unpack

TENCH, KIT_FOX, TISSUE = "n01440764", "n02119789", "n15075141"
SMALL = {"size": 16}


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".origin.json", "filelist.txt")
    }


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}


@pytest.fixture
def in_child():
    """Run a function in a process of its own, and return how it ended."""

    def run(function, wait=True):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                function()
                code = 0
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1] if wait else child

    return run


def test_the_training_archive_becomes_a_tree(tree, capsys):
    archive = tree.train_archive()
    train = ImageNetTrain(SMALL, data_root=tree.root)
    assert files_in(tree.root / "train") == tree.train
    assert train.relpaths == sorted(tree.train)
    assert "unpacking" in capsys.readouterr().out
    assert sorted(path.name for path in tree.root.iterdir()) == [".train.lock", archive.name, "train"]
    assert (tree.root / "train" / "filelist.txt").read_text().splitlines()[1:] == sorted(tree.train)
    archive.unlink()  # it is not looked at again
    assert len(ImageNetTrain(SMALL, data_root=tree.root)) == 12
    assert capsys.readouterr().out == ""


def test_the_validation_archive_becomes_a_tree_sorted_by_the_kit(tree):
    archive, kit = tree.val_archive(), tree.devkit()
    val = ImageNetValidation(SMALL, data_root=tree.root)
    assert files_in(tree.root / "val") == tree.val
    assert val.synsets == sorted(val.synsets)
    assert val.class_labels == [0, 0, 1, 1, 2]
    archive.unlink()
    kit.unlink()
    assert ImageNetValidation(SMALL, data_root=tree.root).relpaths == sorted(tree.val)


def test_a_validation_archive_that_is_sorted_needs_no_kit(tree, tar):
    (tree.root / "ILSVRC2012_img_val.tar").write_bytes(tar({f"./val/{name}": data for name, data in tree.val.items()}))
    assert ImageNetValidation(SMALL, data_root=tree.root).relpaths == sorted(tree.val)


def test_without_the_kit_nothing_is_unpacked(tree):
    tree.val_archive()
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit_t12\.tar\.gz"):
        ImageNetValidation(SMALL, data_root=tree.root)
    assert not (tree.root / "val").exists()
    tree.devkit()
    assert len(ImageNetValidation(SMALL, data_root=tree.root)) == 5


def test_archives_where_the_established_style_puts_them(tree):
    folder = tree.root / "ILSVRC2012_train"
    folder.mkdir()
    tree.train_archive().rename(folder / "ILSVRC2012_img_train.tar")
    assert len(ImageNetTrain(SMALL, data_root=tree.root)) == 12


def test_nothing_is_prepared_twice(tree, monkeypatch):
    tree.train_archive()
    ImageNetTrain(SMALL, data_root=tree.root)
    before = snapshot(tree.root)
    monkeypatch.setattr(unpack, "copy", None)
    monkeypatch.setattr(listing, "list_images", None)
    for _ in range(2):
        assert len(ImageNetTrain(SMALL, data_root=tree.root)) == 12
    assert snapshot(tree.root) == before


def test_a_tree_that_cannot_be_written_is_read(tree, monkeypatch):
    root = tree.unpack()
    before = snapshot(root)
    written = []
    real = Path.open

    def watched(self, mode="r", *args, **kwargs):
        if any(letter in mode for letter in "wax+") and root in self.parents:
            written.append(self)
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    for path in [root, *root.rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        for _ in range(2):
            assert len(ImageNetTrain(SMALL, data_root=root)) == 12
            assert len(ImageNetValidation({**SMALL, "on_error": "skip"}, data_root=root)) == 5
    finally:
        for path in [root, *root.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert snapshot(root) == before
    assert written == []


def test_the_list_of_a_tree_is_kept_until_the_tree_changes(tree, tmp_path, monkeypatch, encode):
    root = tree.unpack()
    assert len(ImageNetTrain(SMALL, data_root=root)) == 12
    (kept,) = (tmp_path / "cache/wholebatch/imagenet").glob("*.txt")
    real = listing.list_images
    monkeypatch.setattr(listing, "list_images", None)
    assert len(ImageNetTrain(SMALL, data_root=root)) == 12
    monkeypatch.setattr(listing, "list_images", real)
    (root / "train" / TENCH / "new.jpeg").write_bytes(encode(1))
    assert len(ImageNetTrain(SMALL, data_root=root)) == 13
    lines = kept.read_text().splitlines()
    assert len(lines) == 14
    for damage in ("\n".join(lines[:-1]), "", "\xff", "# wholebatch"):
        kept.write_text(damage, encoding="latin-1")
        assert len(ImageNetTrain(SMALL, data_root=root)) == 13
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))  # where no folder can be made
    assert len(ImageNetTrain(SMALL, data_root=root)) == 13


def test_what_is_no_image_is_left_out(tree, tar):
    tree.unpack()
    for name in ("._a.JPEG", "notes.txt", "b.JPEG.part"):
        (tree.root / "train" / TENCH / name).write_bytes(b"")
    (tree.root / "train" / TENCH / "folder.JPEG").mkdir()
    (tree.root / "train" / "lost+found").mkdir()
    assert len(ImageNetTrain(SMALL, data_root=tree.root)) == 12
    (tree.root / "train" / TENCH / "two\nlines.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match="odd name"):
        ImageNetTrain(SMALL, data_root=tree.root)


def outside(tmp_path: Path, root: Path) -> list[str]:
    """What lies in the test's folder beside the data and the cache."""
    known = (root, tmp_path / "cache")
    return [str(path) for path in tmp_path.rglob("*") if path not in known and not set(known) & set(path.parents)]


ODD_NAMES = [
    "../evil.JPEG", "/evil.JPEG", "a/../../evil.JPEG", "..\\evil.JPEG", "C:evil.JPEG", "a\x00b.JPEG", "a\nb.JPEG",
    "..", "é\udce9.JPEG", "../evil.tar", "/n01440764.tar",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("where", ["train", "inner", "val"])
def test_names_that_lead_out_are_refused(tree, tmp_path, tar, encode, name, where):
    with pytest.raises(DataError, match="could lead out of the folder"):
        archives._parts(name, "an archive")
    if "\x00" in name:
        return  # tar cannot hold it
    holder = io.BytesIO()
    with tarfile.open(fileobj=holder, mode="w", errors="surrogateescape") as archive:
        data = encode(1)
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    if where == "inner":
        tree.train_archive({"n01443537.tar": holder.getvalue()})
    else:
        (tree.root / f"ILSVRC2012_img_{where}.tar").write_bytes(holder.getvalue())
    tree.devkit()
    kind = ImageNetValidation if where == "val" else ImageNetTrain
    with pytest.raises(DataError, match="could lead out of the folder"):
        kind(SMALL, data_root=tree.root)
    assert outside(tmp_path, tree.root) == []
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tree.root / "train").exists()
    assert not (tree.root / "val").exists()


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Q"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["train", "inner", "val"])
def test_links_and_devices_are_refused(tree, tmp_path, kind, where):
    holder = io.BytesIO()
    with tarfile.open(fileobj=holder, mode="w") as archive:
        member = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG" if where == "val" else "n01443537.tar")
        member.type = kind
        member.linkname = "/etc/passwd"
        archive.addfile(member)
    if where == "inner":
        tree.train_archive({"n01443537.tar": holder.getvalue()})
    else:
        (tree.root / f"ILSVRC2012_img_{where}.tar").write_bytes(holder.getvalue())
    tree.devkit()
    with pytest.raises(DataError, match="link or a device"):
        (ImageNetValidation if where == "val" else ImageNetTrain)(SMALL, data_root=tree.root)
    assert not [path for path in tmp_path.rglob("*") if path.is_symlink() or not (path.is_file() or path.is_dir())]


def test_archives_of_other_things_are_refused(tree, tar, encode):
    for odd, why in (
        ({"readme.txt": b"a"}, "no archive of one class"),
        ({"cats.tar": tar({})}, "no archive of one class"),
        ({"n01443537.tar": tar({"n00000001/a.JPEG": b"a"})}, "another folder than its class's"),
        ({"n01443537.tar": b"no tar at all"}, "n01443537.tar cannot be read"),
        ({"n01443537.tar": b""}, "n01443537.tar cannot be read"),
    ):
        tree.train_archive(odd)
        with pytest.raises(DataError, match=why):
            ImageNetTrain(SMALL, data_root=tree.root)
    (tree.root / "ILSVRC2012_img_train.tar").write_bytes(tar({}))
    with pytest.raises(DataError, match="holds no images"):
        ImageNetTrain(SMALL, data_root=tree.root)
    tree.train_archive({"n01443537.tar": tar({"./n01443537/a.JPEG": encode(1), "notes.txt": b"", "._a.JPEG": b""})})
    train = ImageNetTrain(SMALL, data_root=tree.root)
    assert len(train) == 13
    assert "n01443537/a.JPEG" in train.relpaths
    assert [path.name for path in (tree.root / "train" / "n01443537").iterdir()] == ["a.JPEG"]


def test_a_target_that_holds_something_else_is_left_alone(tree):
    tree.train_archive()
    (tree.root / "train").mkdir()
    (tree.root / "train" / "thesis.txt").write_text("years")
    with pytest.raises(DataError, match="holds something else"):
        ImageNetTrain(SMALL, data_root=tree.root)
    assert (tree.root / "train" / "thesis.txt").read_text() == "years"
    (tree.root / "train" / "thesis.txt").unlink()  # an empty folder is no obstacle
    assert len(ImageNetTrain(SMALL, data_root=tree.root)) == 12


@pytest.mark.parametrize("part", ["train", "val"])
def test_an_archive_that_is_cut_off_says_so_and_a_whole_one_goes_on(tree, part):
    archive = tree.train_archive() if part == "train" else tree.val_archive()
    tree.devkit()
    kind = ImageNetTrain if part == "train" else ImageNetValidation
    data = archive.read_bytes()
    end = len(data.rstrip(b"\0"))
    for length in (0, 100, 512, 700, end // 3, end // 2, end - 600, end - 1, (end + 511) // 512 * 512):
        archive.write_bytes(data[:length])
        with pytest.raises(DataError, match="damaged or cut off"):
            kind(SMALL, data_root=tree.root)
        assert not (tree.root / part).exists()
    archive.write_bytes(data)
    images = tree.train if part == "train" else tree.val
    assert kind(SMALL, data_root=tree.root).relpaths == sorted(images)
    assert files_in(tree.root / part) == images


def test_another_archive_starts_anew(tree):
    tree.train_archive({"n01443537.tar": b"damaged"})
    with pytest.raises(DataError, match="n01443537"):
        ImageNetTrain(SMALL, data_root=tree.root)
    partial = tree.root / ".train.partial"
    assert {path.name for path in partial.iterdir()} >= {TENCH, KIT_FOX, TISSUE}
    tree.train = {path.replace(KIT_FOX, "n01443537"): data for path, data in tree.train.items()}
    tree.synsets = (TENCH, "n01443537", TISSUE)
    tree.train_archive()
    assert ImageNetTrain(SMALL, data_root=tree.root).relpaths == sorted(tree.train)


def kill_at(step: int) -> None:
    """Let this process die before the ``step``-th change of the disk."""
    left = [step]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for place, name in ((os, "rename"), (os, "replace"), (Path, "rename"), (Path, "mkdir"), (Path, "write_text")):
        setattr(place, name, counted(getattr(place, name)))

    class File(io.FileIO):
        def write(self, data):
            if left[0] <= 0:
                super().write(bytes(data)[: len(data) // 2])  # a part of it reaches the disk
            return counted(super().write)(data)

    real = Path.open
    Path.open = lambda self, mode="r", *rest, **more: (
        File(self, "wb") if mode == "wb" else real(self, mode, *rest, **more)
    )


@pytest.mark.parametrize("part", ["train", "val"])
def test_killed_anywhere_it_goes_on_to_the_same_tree(tree, in_child, part, capfd):
    images = tree.train if part == "train" else tree.val
    kind = ImageNetTrain if part == "train" else ImageNetValidation
    tree.train_archive(), tree.val_archive(), tree.devkit()
    target, killed, step = tree.root / part, 0, 0
    while True:
        # One run that dies at this step, from nothing; then one that dies at a few steps more; then a whole one.
        def dying(step=step):
            kill_at(step)
            kind(SMALL, data_root=tree.root)

        status = in_child(dying)
        if os.WIFSIGNALED(status):
            killed += 1
            if target.exists():
                assert files_in(target) == images
            if step % 3 == 0:
                in_child(lambda: dying(5))
        else:
            assert os.WEXITSTATUS(status) == 0
        assert kind(SMALL, data_root=tree.root).relpaths == sorted(images)
        assert files_in(target) == images
        assert not (tree.root / f".{part}.partial").exists()
        if not os.WIFSIGNALED(status):
            break
        for path in sorted(target.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        target.rmdir()
        step += 1
    assert killed > 15


def test_a_run_that_goes_on_does_not_repeat_classes_that_are_whole(tree, in_child, monkeypatch, capfd):
    tree.train_archive()

    def dying():
        real, done = unpack.copy, []

        def counted(entry, target):
            if len(done) == 6:  # in the second class
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(target)
            real(entry, target)

        unpack.copy = counted
        ImageNetTrain(SMALL, data_root=tree.root)

    assert os.WIFSIGNALED(in_child(dying))
    copied, real = [], unpack.copy
    monkeypatch.setattr(unpack, "copy", lambda entry, target: (copied.append(target.name), real(entry, target)))
    ImageNetTrain(SMALL, data_root=tree.root)
    assert copied == sorted(name.rpartition("/")[2] for name in tree.train if not name.startswith(TENCH))
    assert files_in(tree.root / "train") == tree.train


@pytest.mark.parametrize("part", ["train", "val"])
def test_processes_that_prepare_at_once_do_it_once(tree, tmp_path, in_child, part, capfd):
    images = tree.train if part == "train" else tree.val
    kind = ImageNetTrain if part == "train" else ImageNetValidation
    tree.train_archive(), tree.val_archive(), tree.devkit()
    log = tmp_path / "cache-log"

    def prepare():
        real = unpack.copy

        def slow(entry, target):
            with log.open("a") as file:
                file.write(f"{target.name}\n")
            time.sleep(0.01)
            real(entry, target)

        unpack.copy = slow
        assert kind(SMALL, data_root=tree.root).relpaths == sorted(images)

    children = [in_child(prepare, wait=False) for _ in range(4)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert files_in(tree.root / part) == images
    assert len(log.read_text().splitlines()) == len(images)
    assert "another process unpacks" in capfd.readouterr().out


def test_a_disk_that_is_full_says_what_is_kept(tree, monkeypatch):
    tree.train_archive()

    def full(entry, target):
        raise OSError(28, "No space left on device", str(target))

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "copy", full)
        with pytest.raises(DataError, match="No space left on device") as caught:
            ImageNetTrain(SMALL, data_root=tree.root)
        assert "the next run goes on from there" in str(caught.value)
    assert len(ImageNetTrain(SMALL, data_root=tree.root)) == 12


def flipped(data: bytes, draw: random.Random) -> bytes:
    new = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        kind, where = draw.random(), draw.randrange(len(new))
        if kind < 0.5:  # in a header, where it matters most
            where = where // 512 * 512 + draw.randrange(264) % min(512, len(new) - where // 512 * 512)
        new[where] = draw.randrange(256) if kind < 0.8 else new[where] ^ (1 << draw.randrange(8))
    if draw.random() < 0.3:
        start = draw.randrange(0, len(new), 512)
        body = sum(new[start : start + 148]) + 8 * 32 + sum(new[start + 156 : start + 512])
        new[start + 148 : start + 156] = b"%06o\0 " % body  # a header that is wrong but for its checksum
    if draw.random() < 0.2:
        del new[draw.randrange(len(new)) :]
    return bytes(new)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["train", "val", "devkit"])
def test_archives_with_wrong_bytes_never_write_outside_and_fail_with_a_message(tree, tmp_path, part, capfd):
    draw = random.Random(f"archives {part}")
    makers = {"train": tree.train_archive, "val": tree.val_archive, "devkit": tree.devkit}
    tree.val_archive(), tree.devkit()
    archive = makers[part]()
    data = archive.read_bytes()
    kind = ImageNetTrain if part == "train" else ImageNetValidation
    served = failed = 0
    for _ in range(80):
        archive.write_bytes(flipped(data, draw))
        try:
            served += len(kind({**SMALL, "process_images": False}, data_root=tree.root)) > 0
        except DataError:
            failed += 1
        assert outside(tmp_path, tree.root) == []
        assert {path.name for path in tree.root.iterdir()} <= {
            ".train.lock", ".train.partial", "train", ".val.lock", ".val.partial", "val",
            "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz",
        }  # fmt: skip
        for folder in ("train", "val", ".train.partial", ".val.partial"):
            remove(tree.root / folder)
    assert served > 5
    assert failed > 15


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        assert not path.is_symlink()
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()


@pytest.mark.parametrize(
    "header",
    [
        {"type": b"0", "size": -512},
        {"type": b"x", "size": -512},
        {"type": b"L", "size": -1024},
        {"type": b"x", "size": 1 << 40},
        {"type": b"S", "size": 1 << 40},
        {"type": b"0", "size": 1 << 60},
        {"pax": {"size": "-512"}},
        {"pax": {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999"}},
        {"pax": {"path": "../evil.JPEG"}},
    ],
)
@pytest.mark.timeout(20)
def test_headers_made_to_mislead(tree, tmp_path, header, tar):
    member = tarfile.TarInfo("n01440764.tar")
    if "pax" in header:
        member.pax_headers = header["pax"]
        block = member.tobuf(tarfile.PAX_FORMAT)
    else:
        member.type, member.size = header["type"], header["size"]
        block = member.tobuf(tarfile.GNU_FORMAT)
    (tree.root / "ILSVRC2012_img_train.tar").write_bytes(block + tar({"n01443537.tar": tar({"a.JPEG": b"a"})}))
    with pytest.raises(DataError):
        ImageNetTrain(SMALL, data_root=tree.root)
    assert outside(tmp_path, tree.root) == []


@pytest.mark.parametrize("kind", ["backwards", "sparse", "long"])
@pytest.mark.timeout(20)
def test_headers_made_to_loop_to_fill_the_disk_or_the_memory(tree, kind, tar):
    member = tarfile.TarInfo("notes.txt" if kind == "backwards" else "a.JPEG")
    if kind == "backwards":  # the next header would be this one, for ever
        member.size = -512
        block = member.tobuf(tarfile.GNU_FORMAT)
    elif kind == "sparse":  # a byte that says it is two million
        member.size = 1
        member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "2000000"}
        block = member.tobuf(tarfile.PAX_FORMAT) + b"a".ljust(512, b"\0")
    else:
        member.pax_headers = {"comment": "x" * (2 << 20)}
        block = member.tobuf(tarfile.PAX_FORMAT)
    first = tar({"c.JPEG": b"c"})[:1024]
    tree.train_archive({"n01443537.tar": first + block + tar({"b.JPEG": b"b"})})
    with pytest.raises(DataError, match=r"n01443537\.tar cannot be read"):
        ImageNetTrain(SMALL, data_root=tree.root)
    assert not (tree.root / ".train.partial" / "n01443537").exists()


def test_an_inner_archive_is_not_copied_to_the_disk(tree, monkeypatch):
    tree.train_archive()
    names, real = [], archives.copy
    monkeypatch.setattr(unpack, "copy", lambda entry, target: (names.append(entry.parts[-1]), real(entry, target)))
    ImageNetTrain(SMALL, data_root=tree.root)
    assert len(names) == 12
    assert not [name for name in names if name.endswith(".tar")]
    assert parts.TRAIN.archive == "ILSVRC2012_img_train.tar"
