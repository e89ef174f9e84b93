"""Lists of files and labels."""

import json

import pytest

import wholebatch as wb
from wholebatch.core.errors import DataError


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "ant/0.png,zebra\nbee/1.png,ant\n\nbee/2.png,zebra\n"),
        ("b.csv", "\ufefflabel,path,other\r\nzebra,ant/0.png,1\r\nant,bee/1.png,2\r\nzebra,bee/2.png,3\r\n"),
        ("c.tsv", "file\tlabel\nant/0.png\tzebra\nbee/1.png\tant\nbee/2.png\tzebra"),
        ("d.jsonl", ('{"image": "ant/0.png", "class": "zebra"}\n\n{"image": "bee/1.png", "class": "ant"}\n'
                    '{"image": "bee/2.png", "class": "zebra", "x": [1]}\n')),
    ],
)  # fmt: skip
def test_lists_say_the_same(folder, name, text):
    data = wb.data.image_list(write(folder, name, text))
    assert data.classes == ("ant", "zebra")
    assert data.files == ["ant/0.png", "bee/1.png", "bee/2.png"]
    assert data.targets.tolist() == [1, 0, 1]
    assert data[2][0].shape == (3, 6, 8)


def test_numbers_are_classes_in_their_order(folder):
    data = wb.data.image_list(write(folder, "a.csv", "ant/0.png,10\nant/1.png,9\nant/2.png,2\n"))
    assert data.classes == ("2", "9", "10")
    assert data.targets.tolist() == [2, 1, 0]
    lines = "".join(json.dumps({"file": f"ant/{n}.png", "label": n}) + "\n" for n in (3, 1))
    assert wb.data.image_list(write(folder, "a.jsonl", lines)).classes == ("1", "3")


def test_a_column_says_the_split(folder):
    path = write(folder, "a.csv", "file,label,split\nant/0.png,a,train\nant/1.png,b,test\nant/2.png,c,train\n")
    train, test, both = (wb.data.image_list(path, split) for split in ("train", "test", None))
    assert train.classes == test.classes == ("a", "b", "c")
    assert (train.files, test.files, len(both)) == (["ant/0.png", "ant/2.png"], ["ant/1.png"], 3)


def test_without_it_the_split_is_stratified(folder):
    text = "".join(f"bee/{n}.png,{'xy'[n % 2]}\n" for n in range(10))
    train, test = (wb.data.image_list(write(folder, "a.csv", text), split) for split in ("train", "test"))
    assert sorted(train.files + test.files) == [f"bee/{n}.png" for n in range(10)]
    assert sorted(test.targets.tolist()) == [0, 1]


def test_files_of_another_folder(folder, tmp_path):
    path = write(tmp_path, "a.csv", "0.png,a\n1.png,b\n")
    assert wb.data.image_list(path, root=folder / "ant")[1][0].shape == (3, 6, 8)
    absolute = write(tmp_path, "b.csv", f"{folder / 'ant' / '0.png'},a\n")
    assert wb.data.image_list(absolute)[0][0].shape == (3, 6, 8)


def test_a_missing_file_is_named_or_skipped(folder):
    path = write(folder, "a.csv", "ant/0.png,a\nant/none.png,b\n")
    with pytest.raises(DataError, match=r"there is no image .*ant/none\.png"):
        wb.data.image_list(path)[1]
    with pytest.warns(UserWarning, match=r"1 of 2 .*none\.png"):
        data = wb.data.image_list(path, on_error="skip")
    assert (len(data), data.classes) == (1, ("a", "b"))


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "file,size\na.png,3\n", "no column 'label'; its columns: file, size"),
        ("a.csv", "a.png,x\nb.png\n", "line 2: no label for 'b.png'"),
        ("a.csv", "a.png,x\n,y\n", "line 2: no file named"),
        ("a.csv", "file,label,split\na.png,x,dev\n", "line 2: split is 'train' or 'test', got 'dev'"),
        ("a.jsonl", "{", "line 1: not JSON"),
        ("a.jsonl", "[1]", "line 1: expected"),
        ("a.jsonl", '{"file": 3, "label": 1}', "line 1: no file named"),
        ("a.jsonl", '{"file": "a.png", "label": 1.5}', "no name or whole number: 1.5"),
        ("a.jsonl", '{"file": "a.png", "label": true}', "no name or whole number: True"),
    ],
)
def test_mistakes_name_the_line(tmp_path, name, text, match):
    with pytest.raises(DataError, match=match):
        wb.data.image_list(write(tmp_path, name, text))


def test_no_list_and_no_text(tmp_path):
    with pytest.raises(DataError, match="there is no list"):
        wb.data.image_list(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        wb.data.image_list(tmp_path / "a.csv")
    with pytest.raises(DataError, match="splits 'train' and 'test'"):
        wb.data.image_list(tmp_path / "a.csv", "val")
