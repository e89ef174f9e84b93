"""A folder of images, and what real folders hold besides."""

import os
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

import wholebatch as wb
from wholebatch.core.errors import DataError, InputTypeError
from wholebatch.data.imageset import middle


def save(root, name, image, **options):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_a_folder_per_class(folder, picture):
    data = wb.data.image_folder(folder)
    assert len(data) == 17
    assert data.classes == ("ant", "bee", "cow")
    assert data.targets.tolist() == [0] * 5 + [1] * 10 + [2] * 2
    assert data.targets.dtype == torch.int64
    image, label = data[6]
    assert (image.dtype, tuple(image.shape), label) == (torch.uint8, (3, 6, 8), 1)
    assert torch.equal(image, torch.from_numpy(np.array(picture(6))).permute(2, 0, 1))
    assert data.name(6) == str(folder / "bee" / "1.png")
    assert torch.equal(data[-1][0], data[16][0])
    with pytest.raises(IndexError):
        data[17]


def test_a_folder_that_nobody_prepared(tmp_path, picture):
    root = tmp_path / "photos of 2019 & später"
    names = ["Katzen & Co/IMG 001.JPG", "Katzen & Co/a/b/ünïcode 猫.jpeg", "Katzen & Co/-rf.png", "$Vögel$/a'b\"c.WebP"]
    for number, name in enumerate(names):
        save(root, name, picture(number), format={"p": "WEBP", "g": "PNG"}.get(name[-1], "JPEG"))
    save(root, "$Vögel$/.hidden.jpg", picture(9))
    save(root, "$Vögel$/.thumbnails/1.jpg", picture(9))
    save(root, "__MACOSX/x/1.jpg", picture(9))
    save(root, "loose.jpg", picture(9))
    for text in ("$Vögel$/notes.txt", "$Vögel$/Thumbs.db", "$Vögel$/noextension", "readme.md"):
        (root / text).write_text("not an image")
    (root / "empty class").mkdir()
    (root / "only text").mkdir()
    (root / "only text" / "a.txt").write_text("x")
    (root / "$Vögel$" / "round").symlink_to(root)  # in a circle
    (root / "$Vögel$" / "link.png").symlink_to("../Katzen & Co/-rf.png")
    data = wb.data.image_folder(root)
    assert data.classes == ("$Vögel$", "Katzen & Co")
    own = [os.path.relpath(data.path(index), root) for index in range(len(data))]
    assert [name for name in own if "round" not in name] == [
        "$Vögel$/a'b\"c.WebP", "$Vögel$/link.png", "Katzen & Co/-rf.png", "Katzen & Co/IMG 001.JPG",
        "Katzen & Co/a/b/ünïcode 猫.jpeg",
    ]  # fmt: skip
    assert [data[index][0].shape[0] for index in range(len(data))] == [3] * len(data)


def test_a_link_in_a_circle_ends(tmp_path, picture):
    save(tmp_path, "a/1.png", picture(0))
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    names = [os.path.relpath(path, tmp_path) for path in wb.data.image_folder(tmp_path).files]
    assert len(names) == 1


def test_names_that_are_no_text(tmp_path, picture):
    save(tmp_path, "a/1.png", picture(0))
    os.rename(tmp_path / "a" / "1.png", os.fsencode(tmp_path / "a") + b"/\xff\xfe.png")
    data = wb.data.image_folder(tmp_path)
    assert data[0][0].shape == (3, 6, 8)
    assert data.name(0).endswith("\\udcff\\udcfe.png")
    data.name(0).encode()


def test_one_name_in_two_spellings_is_one_class(tmp_path, picture):
    for number, form in enumerate(("NFC", "NFD")):
        save(tmp_path, f"{unicodedata.normalize(form, 'é')}/{number}.png", picture(number))
    assert wb.data.image_folder(tmp_path).classes == (unicodedata.normalize("NFC", "é"),)


def test_every_kind_of_image_becomes_rgb(tmp_path, picture):
    rotated = Image.Exif()
    rotated[0x0112] = 6
    save(tmp_path, "a/1.jpg", picture(1, 20, 10), exif=rotated)
    save(tmp_path, "a/2.jpg", picture(2, mode="CMYK"))
    save(tmp_path, "a/3.png", picture(3, mode="L"))
    save(tmp_path, "a/4.gif", picture(4, mode="P"))
    save(tmp_path, "a/5.png", picture(5, mode="RGBA"))
    save(tmp_path, "a/6.JPEG", picture(6), format="PNG")
    save(tmp_path, "a/7.png", Image.fromarray(np.full((6, 8), 32768, np.uint16)))
    save(tmp_path, "a/8.png", picture(8, mode="1"))
    data = wb.data.image_folder(tmp_path)
    shapes = [tuple(data[index][0].shape) for index in range(8)]
    assert shapes == [(3, 20, 10)] + [(3, 6, 8)] * 7  # the first one is upright
    assert data[6][0].unique().tolist() == [128]
    assert torch.equal(data[5][0], torch.from_numpy(np.array(picture(6))).permute(2, 0, 1))


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val"), ("train", "validation")])
def test_splits_by_folders(tmp_path, picture, names):
    for part, number in zip(names, (0, 10), strict=True):
        for name in ("a", "b"):
            save(tmp_path, f"{part}/{name}/1.png", picture(number))
    save(tmp_path, f"{names[0]}/c/2.png", picture(3))
    train, test = (wb.data.image_folder(tmp_path, split) for split in ("train", "test"))
    assert [len(train), len(test), len(wb.data.image_folder(tmp_path))] == [3, 2, 5]
    assert train.classes == test.classes == ("a", "b", "c")
    assert f"{names[1]}/a/1.png" in test.files
    assert test.targets.tolist() == [0, 1]


def test_a_class_of_the_test_folder_alone_is_refused(tmp_path, picture):
    save(tmp_path, "train/a/1.png", picture(0))
    save(tmp_path, "test/b/1.png", picture(1))
    with pytest.raises(DataError, match="the test part has the class 'b', which the training part lacks"):
        wb.data.image_folder(tmp_path, "test")


def test_two_classes_called_train_and_test(tmp_path, picture):
    save(tmp_path, "train/1.png", picture(0))
    save(tmp_path, "test/1.png", picture(1))
    assert wb.data.image_folder(tmp_path).classes == ("test", "train")


def test_a_split_that_is_stratified_and_disjoint(folder):
    train, test = (wb.data.image_folder(folder, split) for split in ("train", "test"))
    assert torch.bincount(test.targets).tolist() == [1, 2, 1]
    assert sorted(train.files + test.files) == sorted(wb.data.image_folder(folder).files)
    assert test.files == wb.data.image_folder(folder, "test").files
    assert test.files != wb.data.image_folder(folder, "test", seed=1).files
    assert len(wb.data.image_folder(folder, "test", test_share=0.5)) == 8
    # a function of the names: the very files that another machine takes
    assert test.files == ["ant/2.png", "bee/0.png", "bee/2.png", "cow/1.png"]


def test_a_split_hardly_moves_when_a_file_is_added(folder, picture):
    before = set(wb.data.image_folder(folder, "test").files)
    save(folder, "bee/new.png", picture(77))
    assert len(before - set(wb.data.image_folder(folder, "test").files)) <= 1


def test_a_size_makes_one_size_of_all(tmp_path, picture):
    save(tmp_path, "a/1.png", picture(1, 40, 20))
    save(tmp_path, "a/2.png", picture(2, 7, 9))
    data = wb.data.image_folder(tmp_path, size=16)
    assert [tuple(data[index][0].shape) for index in (0, 1)] == [(3, 16, 16)] * 2
    expected = picture(1, 40, 20).resize((32, 16), Image.Resampling.BICUBIC).crop((8, 0, 24, 16))
    assert torch.equal(data[0][0], torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert middle(picture(0, 3000, 1), 8).size == (8, 8)


def test_different_sizes_are_named(tmp_path, picture):
    save(tmp_path, "a/1.png", picture(1, 40, 20))
    save(tmp_path, "a/2.png", picture(2, 7, 9))
    data = wb.data.image_folder(tmp_path)
    loader = wb.data.BatchLoader(data, 2, shuffle=False)
    for ask in (lambda: next(iter(loader)), data.in_memory):
        with pytest.raises(DataError, match=r"a/1\.png is 20 × 40, .*a/2\.png is 9 × 7 \(height × width\); say size=N"):
            ask()


def test_whole_tensors(folder):
    data = wb.data.image_folder(folder)
    whole = data.in_memory()
    assert isinstance(whole, wb.data.ArrayDataset)
    assert whole.classes == data.classes
    for index in range(len(data)):
        assert torch.equal(whole.inputs[index], data[index][0])
        assert whole.targets[index] == data[index][1]


def damage(folder):
    (folder / "ant" / "0.png").write_bytes((folder / "ant" / "0.png").read_bytes()[:60])
    (folder / "bee" / "4.png").write_text("no image")
    (folder / "bee" / "5.png").unlink()
    (folder / "bee" / "5.png").symlink_to("nowhere.png")
    return ["ant/0.png", "bee/4.png", "bee/5.png"]


def test_a_damaged_image_raises_and_is_named(folder):
    bad = damage(folder)
    data = wb.data.image_folder(folder)
    assert len(data) == 17
    for name in bad:
        with pytest.raises(DataError, match=name):
            data[data.files.index(name)]
    with pytest.raises(DataError, match=r"sample 0 of ImageFiles: .*ant/0\.png cannot be read, it is damaged"):
        next(iter(wb.data.BatchLoader(data, 4, shuffle=False)))


def test_damaged_images_are_skipped_and_counted(folder, own_cache):
    bad = damage(folder)
    with pytest.warns(UserWarning, match="3 of 17 images cannot be read and are left out"):
        data = wb.data.image_folder(folder, on_error="skip")
    assert len(data) == len(data.targets) == 14
    assert [os.path.relpath(name, folder) for name, _ in data.skipped] == bad
    assert all(reason for _, reason in data.skipped)
    kept = [os.path.relpath(data.path(index), folder) for index in range(14)]
    assert kept == [name for name in wb.data.image_folder(folder).files if name not in bad]
    assert [data[index][1] for index in range(14)] == data.targets.tolist() == [0] * 4 + [1] * 8 + [2] * 2
    assert "3 skipped" in repr(data)


def test_what_was_skipped_is_looked_for_once(folder, monkeypatch):
    (folder / "ant" / "0.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 of 17"):
        first = wb.data.image_folder(folder, on_error="skip")
    with monkeypatch.context() as patch:
        patch.setattr(wb.data.ImageFiles, "decode", lambda self, place: pytest.fail("decoded again"))
        with pytest.warns(UserWarning, match="1 of 17"):
            second = wb.data.image_folder(folder, on_error="skip")
    assert second.skipped == first.skipped
    os.utime(folder / "ant" / "1.png", ns=(1, 1))  # a file that was written meanwhile is looked at
    (folder / "ant" / "1.png").write_text("no image either")
    with pytest.warns(UserWarning, match="2 of 17"):
        wb.data.image_folder(folder, on_error="skip")


def test_skipping_needs_no_cache(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WHOLEBATCH_CACHE", str(tmp_path / "file" / "cache"))
    (folder / "ant" / "0.png").write_text("no image")
    for _ in range(2):
        with pytest.warns(UserWarning, match="1 of 17"):
            assert len(wb.data.image_folder(folder, on_error="skip")) == 16


def test_nothing_left(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_text("no image")
    with pytest.warns(UserWarning, match="1 of 1"), pytest.raises(DataError, match="no image that can be read"):
        wb.data.image_folder(tmp_path, on_error="skip")


def test_an_image_far_too_large_is_refused(tmp_path, monkeypatch, picture):
    save(tmp_path, "a/1.png", picture(0, 40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"1\.png is too large to be one: 1,200 pixels"):
        wb.data.image_folder(tmp_path)[0]


def test_a_program_named_as_an_image_is_not_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="no image that Pillow can read"):
        wb.data.image_folder(tmp_path)[0]


def test_mistakes(folder, tmp_path, picture):
    with pytest.raises(DataError, match="did you mean 'train'"):
        wb.data.image_folder(folder, "trian")
    with pytest.raises(DataError, match="on_error is 'raise' or 'skip', got 'ignore'"):
        wb.data.image_folder(folder, on_error="ignore")
    with pytest.raises(DataError, match="there is no such folder"):
        wb.data.image_folder(folder / "nope")
    with pytest.raises(DataError, match="is a file"):
        wb.data.image_folder(folder / "ant" / "0.png")
    with pytest.raises(DataError, match="holds 5 images, but no folder per class"):
        wb.data.image_folder(folder / "ant")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        wb.data.image_folder(tmp_path / "empty")
    with pytest.raises(DataError, match="test_share must be above 0"):
        wb.data.image_folder(folder, "test", test_share=0)
    with pytest.raises(InputTypeError, match="path of a folder"):
        wb.data.image_folder(3)
    with pytest.raises(InputTypeError, match="size must be a whole number of pixels, got 'big'"):
        wb.data.image_folder(folder, size="big")
    save(tmp_path, "single/a/1.png", picture(0))
    with pytest.raises(DataError, match="no class has two images"):
        wb.data.image_folder(tmp_path / "single", "test")
