"""What is wrong with a folder."""

import shutil

import wholebatch as wb
from wholebatch.data import doubles


def test_a_clean_folder(folder):
    found = doubles.find(wb.data.image_folder(folder))
    assert found.clean
    assert (found.images, found.classes) == (17, {"ant": 5, "bee": 10, "cow": 2})


def test_everything_is_found(folder, picture):
    shutil.copy(folder / "ant" / "0.png", folder / "ant" / "copy.png")
    picture(6).save(folder / "bee" / "the same.bmp")  # another file, the same picture
    shutil.copy(folder / "bee" / "2.png", folder / "cow" / "cow.png")
    shutil.copy(folder / "bee" / "2.png", folder / "bee" / "twice.png")
    (folder / "cow" / "0.png").write_text("no image")
    almost = picture(8)
    almost.putpixel((7, 5), (1, 2, 3))  # no double: the last pixel differs
    almost.save(folder / "bee" / "almost.png")
    picture(3).rotate(180).save(folder / "ant" / "turned.png")  # no double
    found = doubles.find(wb.data.image_folder(folder))
    assert not found.clean
    assert found.duplicates == [["ant/0.png", "ant/copy.png"], ["bee/1.png", "bee/the same.bmp"]]
    assert found.mislabelled == [["bee/2.png", "bee/twice.png", "cow/cow.png"]]
    assert [name for name, _ in found.unreadable] == ["cow/0.png"]
    assert "cow/0.png is no image" in found.unreadable[0][1]
    assert found.images == 23
