import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import DataLoader

import wholebatch as wb
from wholebatch.core.errors import ConfigError, DataError, InputTypeError
from wholebatch.data import ImageNetBase, ImageNetTrain, ImageNetValidation

TENCH, KIT_FOX, TISSUE = "n01440764", "n02119789", "n15075141"
SMALL = {"size": 16}


def test_an_item_says_what_it_is(tree):
    tree.unpack()
    train = ImageNetTrain(SMALL, data_root=tree.root)
    assert len(train) == 12
    item = train[5]
    assert list(item) == ["image", "class_label", "human_label", "synsets", "relpath", "file_path_"]
    assert isinstance(item["image"], np.ndarray)
    assert item["image"].dtype == np.float32
    assert item["image"].shape == (16, 16, 3)
    assert item["class_label"] == 1
    assert item["human_label"] == "kit fox, Vulpes macrotis"
    assert item["synsets"] == KIT_FOX
    assert item["relpath"] == f"{KIT_FOX}/{KIT_FOX}_1.JPEG"
    assert item["file_path_"] == str(tree.root / "train" / KIT_FOX / f"{KIT_FOX}_1.JPEG")
    assert train[-1]["relpath"] == train[11]["relpath"]
    with pytest.raises(IndexError, match="12"):
        train[12]
    with pytest.raises(IndexError):
        train[-13]


def test_what_the_data_set_says_of_itself(tree):
    tree.unpack()
    train = ImageNetTrain(SMALL, data_root=tree.root)
    assert train.targets.tolist() == train.class_labels == [0] * 4 + [1] * 4 + [2] * 4
    assert train.targets.dtype == torch.int64
    assert train.classes == ("tench, Tinca tinca", "kit fox, Vulpes macrotis", train.human_labels[-1])
    assert train.synset2idx[TISSUE] == 999
    assert train.idx2synset[278] == KIT_FOX
    assert train.synset2human[TENCH] == "tench, Tinca tinca"
    assert train.human2integer["kit fox, Vulpes macrotis"] == 278
    assert train.human2integer["crane"] == 517
    assert train.relpaths == sorted(tree.train)
    assert train.expected_length == 1_281_167
    assert ImageNetValidation(SMALL, data_root=tree.root).expected_length == 50_000
    assert train.data[3]["relpath"] == train[3]["relpath"]
    assert repr(train) == f"ImageNetTrain(12 images of 3 classes in {tree.root / 'train'})"
    assert train.root == tree.root


def test_without_processing_the_path_stands_in(tree):
    tree.unpack()
    (tree.root / "train" / TENCH / f"{TENCH}_0.JPEG").write_bytes(b"no image")  # nobody looks
    for train in (
        ImageNetTrain(process_images=False, data_root=str(tree.root)),
        ImageNetTrain({"process_images": False}, data_root=str(tree.root)),
    ):
        item = train[0]
        assert item["image"] == item["file_path_"] == str(tree.root / "train" / TENCH / f"{TENCH}_0.JPEG")
        assert item["class_label"] == 0
        assert train.data == train.abspaths
        assert train.data[0] == item["file_path_"]


def test_original_labels_are_those_of_all_classes(tree):
    tree.unpack()
    config = {**SMALL, "keep_orig_class_label": True}
    train = ImageNetTrain(config, data_root=tree.root)
    assert sorted(set(train.class_labels)) == [0, 278, 999]
    assert train[0]["class_label"] == 0
    assert train[4]["class_label"] == 278
    assert len(train.classes) == 1000
    assert [train.classes[label] for label in (0, 134, 517)] == [
        "tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)",
    ]  # fmt: skip
    part = ImageNetTrain({**config, "sub_indices": "270-278, 999"}, data_root=tree.root)  # without it, too
    assert sorted(set(part.class_labels)) == [278, 999]


def test_a_range_holds_its_end_and_the_number_of_classes_is_printed(tree, capsys):
    tree.unpack()
    part = ImageNetTrain({**SMALL, "sub_indices": "270-278, 999"}, data_root=tree.root)
    assert set(part.synsets) == {KIT_FOX, TISSUE}
    assert set(part.class_labels) == {0, 1}
    said = capsys.readouterr().out
    assert "selects 10 classes" in said
    assert "8 images of 2 of them" in said
    assert ImageNetTrain({**SMALL, "sub_indices": None}, data_root=tree.root).classes[0].startswith("tench")
    assert capsys.readouterr().out == ""
    with pytest.raises(DataError, match="no image that is asked for"):
        ImageNetTrain({**SMALL, "sub_indices": "5"}, data_root=tree.root)


def test_a_config_may_be_nothing_a_dict_or_a_node(tree):
    tree.unpack()
    assert ImageNetTrain(data_root=tree.root)[0]["image"].shape == (256, 256, 3)
    assert ImageNetTrain(None, True, tree.root).settings.size == 256
    node = OmegaConf.create({"size": "${side}", "side": 20, "crop_size": 12})
    with pytest.raises(ConfigError, match=r"'side'; did you mean 'size'\?"):
        ImageNetTrain(node, data_root=tree.root)
    node = OmegaConf.create({"config": {"size": "${side}", "sub_indices": "0-9, 278"}, "side": 20}).config
    train = ImageNetTrain(node, data_root=tree.root)
    assert train[0]["image"].shape == (20, 20, 3)
    assert len(train) == 8
    both = {
        "size": 20,
        "ImageNetTrain": {"random_crop": False},
        "ImageNetValidation": {"random_crop": True, "size": 18},
    }
    assert ImageNetTrain(both, data_root=tree.root).random_crop is False
    val = ImageNetValidation(both, data_root=tree.root)
    assert val.random_crop is True
    assert val[0]["image"].shape == (18, 18, 3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sise": 4}, "'sise'; did you mean 'size'"),
        ({"ImageNetTrain": {"random_crops": True}}, "'random_crops'; did you mean 'random_crop'"),
        ({"ImageNetValidation": {"random_crops": True}}, "did you mean 'random_crop'"),
        ({"ImageNetTrain": 3}, "expected a group"),
        ({"zzz": 4}, "there are size, random_crop"),
        ({"size": 0}, "size=0: expected a whole number of pixels"),
        ({"size": True}, "size=True"),
        ({"size": "16"}, "size='16'"),
        ({"size": 1 << 20}, "1 to 16384"),
        ({"size": None}, "size=None"),
        ({"crop_size": -1}, "crop_size=-1"),
        ({"size": 8, "crop_size": 9}, "crop_size=9 is larger than size=8"),
        ({"random_crop": "yes"}, "random_crop='yes': expected true or false"),
        ({"keep_orig_class_label": None}, "keep_orig_class_label=None"),
        ({"process_images": 1}, "process_images=1"),
        ({"on_error": "skipp"}, "did you mean 'skip'"),
        ({"sub_indices": "9-0"}, "runs backwards"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_before_anything_is_done(config, message, tmp_path):
    with pytest.raises(ConfigError, match=r"\S") as caught:
        ImageNetTrain(config, data_root=tmp_path)  # holds nothing: the config comes first
    assert message in str(caught.value)


def test_a_config_of_another_kind_is_refused(tmp_path):
    with pytest.raises(InputTypeError, match="config is a list"):
        ImageNetTrain([("size", 3)], data_root=tmp_path)


def expected(path, size, crop, left, top):
    image = Image.open(path).convert("RGB")
    least = min(image.size)
    image = image.resize(
        (round(image.width * size / least), round(image.height * size / least)), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(image)[top : top + crop, left : left + crop]
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1), image.size


@pytest.mark.parametrize(("size", "crop"), [(16, None), (17, 10), (64, 33)])
def test_validation_takes_the_centre(tree, size, crop):
    tree.unpack()
    config = {"size": size, **({} if crop is None else {"crop_size": crop})}
    side = crop or size
    for val in (
        ImageNetValidation(config, data_root=tree.root),
        ImageNetTrain({**config, "random_crop": False}, data_root=tree.root),
    ):
        for number, path in enumerate(val.abspaths):
            _, (width, height) = expected(path, size, side, 0, 0)
            image, _ = expected(path, size, side, (width - side) // 2, (height - side) // 2)
            assert image.shape == (side, side, 3)
            np.testing.assert_allclose(val[number]["image"], image, atol=1e-6)
            assert val[number]["image"].min() >= -1
            assert val[number]["image"].max() <= 1


def test_black_is_minus_one_and_white_is_one(tree):
    tree.unpack()
    folder = tree.root / "val" / TENCH
    Image.new("RGB", (9, 20), (0, 255, 255)).save(folder / "ILSVRC2012_val_00000000.JPEG", "PNG")
    item = next(i for i in ImageNetValidation(SMALL, data_root=tree.root) if i["relpath"].endswith("00000000.JPEG"))
    assert item["image"][0, 0].tolist() == [-1, 1, 1]


def test_every_place_is_drawn_and_keyed_by_seed_epoch_and_sample(tree):
    tree.unpack()
    train = ImageNetTrain({"size": 12, "crop_size": 10}, data_root=tree.root)
    path = train.abspaths[2]  # a square one
    corners = {}
    for left in range(3):
        for top in range(3):
            corners[expected(path, 12, 10, left, top)[0].tobytes()] = (left, top)
    seen = {}
    for epoch in range(60):
        (item,) = train.keyed_samples([2], seed=5, epoch=epoch)
        seen[epoch] = corners[item["image"].tobytes()]
        (again,) = train.keyed_samples([2], seed=5, epoch=epoch)
        assert again["image"].tobytes() == item["image"].tobytes()
    assert set(seen.values()) == set(corners.values())
    assert [corners[train.keyed_samples([2], seed=6, epoch=e)[0]["image"].tobytes()] for e in seen] != list(
        seen.values()
    )
    alone = [corners[train.keyed_samples([1, 2], seed=5, epoch=e)[1]["image"].tobytes()] for e in seen]
    assert alone == list(seen.values())
    train.set_epoch(7)
    assert train[2]["image"].tobytes() == train.keyed_samples([2], seed=0, epoch=7)[0]["image"].tobytes()


def crops(loader, micro_batch, epochs=2):
    found = {}
    for epoch in range(epochs):
        for window in loader.windows(micro_batch):
            for batch in window:
                for image, path in zip(batch["image"], batch["relpath"], strict=True):
                    found[epoch, path] = image.numpy().tobytes()
    return found


def test_the_same_sample_is_the_same_crop_whatever_the_batch(tree):
    tree.unpack()
    train = ImageNetTrain(SMALL, data_root=tree.root)
    whole = crops(wb.data.BatchLoader(train, 12, seed=3), None)
    assert len(whole) == 24
    assert whole == crops(wb.data.BatchLoader(train, 12, seed=3), 5)
    assert whole == crops(wb.data.BatchLoader(train, 7, seed=3), 1)
    assert whole == crops(wb.data.BatchLoader(train, 7, seed=3, shuffle=False), None)
    assert whole != crops(wb.data.BatchLoader(train, 12, seed=4), None)
    changed = [path for epoch, path in whole if epoch == 0 and whole[0, path] != whole[1, path]]
    assert len(changed) >= 6  # all but the square images, which have one place, and a chance or two


def test_a_window_that_is_gathered_late_is_of_its_own_epoch(tree):
    tree.unpack()
    train = ImageNetTrain(SMALL, data_root=tree.root)
    loader = wb.data.BatchLoader(train, 12, seed=3, shuffle=False)
    (early,) = loader.windows()
    assert loader.epoch == 1
    at_once = crops(wb.data.BatchLoader(train, 12, seed=3, shuffle=False), None, 1)
    assert early.whole()["image"].numpy().tobytes() == b"".join(at_once.values())


def test_batches_of_dicts(tree):
    tree.unpack()
    train = ImageNetTrain(SMALL, data_root=tree.root)
    batch = next(iter(wb.data.BatchLoader(train, 5, shuffle=False)))
    assert batch["image"].shape == (5, 16, 16, 3)
    assert batch["class_label"].tolist() == [0, 0, 0, 0, 1]
    assert batch["relpath"] == train.relpaths[:5]
    others = list(DataLoader(train, batch_size=5))
    assert others[0]["class_label"].tolist() == [0, 0, 0, 0, 1]


def test_odd_files_are_served_and_damaged_ones_named(tree, encode):
    folder = tree.unpack() / "train" / TENCH
    (folder / "a.JPEG").write_bytes(encode(1, mode="CMYK"))
    (folder / "b.JPEG").write_bytes(encode(2, mode="L"))
    (folder / "c.JPEG").write_bytes(encode(3, kind="PNG"))
    (folder / "d.JPEG").write_bytes(encode(4)[:-200])
    (folder / "e.JPEG").write_bytes(b"")
    train = ImageNetTrain(SMALL, data_root=tree.root)
    names = {path.rpartition("/")[2]: number for number, path in enumerate(train.relpaths)}
    for name in ("a.JPEG", "b.JPEG", "c.JPEG"):
        assert train[names[name]]["image"].shape == (16, 16, 3)
    grey = train[names["b.JPEG"]]["image"]
    assert (grey[..., 0] == grey[..., 2]).all()
    for name in ("d.JPEG", "e.JPEG"):
        with pytest.raises(DataError, match=f"{TENCH}/{name}"):
            train[names[name]]
    with pytest.raises(DataError, match=r"d\.JPEG|e\.JPEG"):
        list(wb.data.BatchLoader(train, 17))


def test_skipping_leaves_out_the_same_images_for_everybody(tree, encode, capsys, monkeypatch):
    folder = tree.unpack() / "train" / TENCH
    (folder / "a.JPEG").write_bytes(encode(1, mode="CMYK"))
    (folder / "d.JPEG").write_bytes(encode(4)[:-200])
    (folder / "e.JPEG").write_bytes(b"none")
    config = {**SMALL, "on_error": "skip"}
    train = ImageNetTrain(config, data_root=tree.root)
    assert train.skipped == [f"{TENCH}/d.JPEG", f"{TENCH}/e.JPEG"]
    assert len(train) == 13
    assert "2 images that cannot be read are left out, 13 remain" in capsys.readouterr().out
    assert sum(len(batch["image"]) for batch in wb.data.BatchLoader(train, 4)) == 13
    from wholebatch.data.imagenet import unreadable

    decoded = []
    real = unreadable.read_image
    monkeypatch.setattr(unreadable, "read_image", lambda path: (decoded.append(path), real(path)))
    assert ImageNetTrain(config, data_root=tree.root).skipped == train.skipped
    assert decoded == []  # what was found is kept
    assert len(ImageNetTrain({**config, "sub_indices": "278"}, data_root=tree.root)) == 4
    assert len(decoded) == 4  # another selection is another list
    decoded.clear()
    (folder / "d.JPEG").write_bytes(encode(4))  # repaired in place
    assert ImageNetTrain(config, data_root=tree.root).skipped == [f"{TENCH}/e.JPEG"]
    assert len(decoded) == 15
    monkeypatch.setattr(unreadable, "_ALONE", 1)  # several processes find the same
    (folder / "f.JPEG").write_bytes(b"none")
    assert ImageNetTrain(config, data_root=tree.root).skipped == [f"{TENCH}/e.JPEG", f"{TENCH}/f.JPEG"]


def test_an_image_that_is_no_photograph_is_refused(tree):
    folder = tree.unpack() / "train" / TENCH
    Image.new("L", (60_000, 2)).save(folder / "a.JPEG", "PNG")
    train = ImageNetTrain({"size": 256}, data_root=tree.root)
    number = train.relpaths.index(f"{TENCH}/a.JPEG")
    with pytest.raises(DataError, match=r"a\.JPEG of 60000 x 2 pixels is no photograph"):
        train[number]


def test_the_steps_can_be_overridden(tree):
    tree.unpack()
    done = []

    class Mine(ImageNetTrain):
        def _prepare(self):
            done.append("prepare")
            super()._prepare()
            self.relpaths = self.relpaths[:8]

        def _prepare_synset_to_human(self):
            done.append("human")
            super()._prepare_synset_to_human()
            self.synset2human[TENCH] = "a fish"

        def _prepare_idx_to_synset(self):
            done.append("idx")
            super()._prepare_idx_to_synset()

        def _prepare_human_to_integer_label(self):
            done.append("integer")
            super()._prepare_human_to_integer_label()

        def _load(self):
            done.append("load")
            super()._load()

    train = Mine({**SMALL, "ImageNetTrain": {"random_crop": False}}, data_root=tree.root)
    assert done == ["prepare", "human", "idx", "integer", "load"]
    assert len(train) == 8
    assert train[0]["human_label"] == train.classes[0] == "a fish"
    assert train.human2integer["a fish"] == 0
    assert train.random_crop is False
    with pytest.raises(NotImplementedError, match="ImageNetTrain"):
        ImageNetBase()


def test_a_class_of_another_challenge_is_named(tree):
    other = tree.unpack() / "train" / "n00000001"
    other.mkdir()
    (other / "a.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match="n00000001, which is none of the 1,000 classes"):
        ImageNetTrain(SMALL, data_root=tree.root)


def test_labels_of_the_validation_part_are_those_of_the_folders(tree):
    tree.unpack()
    val = ImageNetValidation(SMALL, data_root=tree.root)  # sorted into classes: no kit is needed
    assert val.relpaths == sorted(tree.val)
    assert val.synsets == [path.partition("/")[0] for path in sorted(tree.val)]
    assert val.class_labels == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("kit", ["archive", "unpacked", "text", "synsets", "latent-diffusion", "kaggle"])
def test_flat_validation_images_get_their_classes_from_the_kit(tree, kit):
    tree.unpack(train=None, flat=True)
    root, names = tree.root, [path.rpartition("/")[::2] for path in tree.val]
    if kit == "archive":
        tree.devkit()
    elif kit == "unpacked":
        (root / "ILSVRC2012_devkit_t12/data").mkdir(parents=True)
        (root / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text(tree.truth)
    elif kit == "text":
        (root / "ILSVRC2012_validation_ground_truth.txt").write_text(tree.truth)
    elif kit == "synsets":
        lines = "".join(f"{synset}\n" for synset, _ in names)
        (root / "imagenet_2012_validation_synset_labels.txt").write_text(lines)
    elif kit == "latent-diffusion":
        lines = [f"{name} {synset}/{name}\n" for synset, name in names]
        (root / "validation_synset.txt").write_text("".join(reversed(lines)))
    else:
        lines = [f"{name[:-5]},{synset} 1 2 3 4 {synset} 5 6 7 8 \n" for synset, name in names]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(lines)))
    val = ImageNetValidation(SMALL, data_root=root)
    assert val.relpaths == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 6)]
    assert val.synsets == [KIT_FOX, TISSUE, TENCH, KIT_FOX, TENCH]
    assert val.class_labels == [1, 2, 0, 1, 0]
    assert val[1]["file_path_"] == str(root / "val" / "ILSVRC2012_val_00000002.JPEG")
    copy = pickle.loads(pickle.dumps(val))  # as loaders' processes get it
    assert copy[1]["image"].tobytes() == val[1]["image"].tobytes()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1\n889\n449\n1\n", "does not say which class ILSVRC2012_val_00000005.JPEG is of"),
        ("1\n0\n", "line 2: '0' is no ILSVRC2012_ID"),
        ("1\n1001\n", "line 2"),
        ("1\nx\n", "line 2"),
        ("n00000001\n", "no synset of the challenge"),
        ("1\n\n1\n", "line 2"),
        ("ü\n", "no text of class numbers"),
        ("", "there are 0 lines"),
    ],
)
def test_a_malformed_ground_truth_is_refused(tree, text, why):
    tree.unpack(train=None, flat=True)
    (tree.root / "ILSVRC2012_validation_ground_truth.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        ImageNetValidation(SMALL, data_root=tree.root)
    assert why in str(caught.value)
    assert "ILSVRC2012_validation_ground_truth.txt" in str(caught.value)


def test_what_is_missing_is_said(tmp_path):
    for kind, archive in ((ImageNetTrain, "ILSVRC2012_img_train.tar"), (ImageNetValidation, "ILSVRC2012_img_val.tar")):
        with pytest.raises(DataError, match="the folder does not exist") as caught:
            kind(data_root=tmp_path / "none")
        assert archive in str(caught.value)
        assert "https://image-net.org/download-images" in str(caught.value)
        with pytest.raises(DataError, match=r"cache/wholebatch/imagenet \("):
            kind()
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="it holds train"):
        ImageNetTrain(data_root=tmp_path)


def test_a_kit_that_is_missing_is_said(tree):
    tree.unpack(flat=True)
    with pytest.raises(DataError, match=r"ILSVRC2012_devkit_t12\.tar\.gz"):
        ImageNetValidation(data_root=tree.root)
    (tree.root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"garbage" * 100)
    with pytest.raises(DataError, match="damaged or cut off"):
        ImageNetValidation(data_root=tree.root)


@pytest.mark.parametrize("folder", ["ILSVRC2012_train/data", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train"])
def test_trees_as_others_unpack_them(tree, folder):
    tree.unpack(train=folder, val=None)
    assert ImageNetTrain(SMALL, data_root=tree.root).datadir == tree.root / folder
