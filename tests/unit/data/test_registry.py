"""Data sets by name, and of one's own by import path."""

import pytest
import torch
from torch.utils.data import Dataset

import wholebatch as wb
from wholebatch.core.errors import DataError
from wholebatch.data import imported, registry

MODULE = """
import torch
class Mine(torch.utils.data.Dataset):
    classes = ["x", "y"]
    def __init__(self, split, root=None, length=4):
        self.split, self.root, self.length = split, root, length
    def __len__(self): return self.length
    def __getitem__(self, index): return torch.zeros(1, 2, 2), index % 2
def like_torchvision(root, train=True, transform=None): return Mine(str(train), root)
def arrays(split): return torch.zeros(3, 2), torch.tensor([0, 2, 1])
def stream(split): return (x for x in range(3))
def fails(split): raise OSError("no disk")
def without(root): return Mine("all")
number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the current folder, which is not on the path."""
    (tmp_path / "own_data_of_test_registry.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "own_data_of_test_registry"
    __import__("sys").modules.pop("own_data_of_test_registry", None)


def test_ones_own_data_set(module):
    made = registry.read(f"{module}:Mine", "test", "somewhere", length=7)
    assert (made.split, made.root, len(made)) == ("test", "somewhere", 7)
    assert registry.options(f"{module}:Mine") == {"length"}
    assert registry.read(f"{module}:like_torchvision", "train", "r").split == "True"
    assert registry.read(f"{module}:like_torchvision", "test", "r").split == "False"
    assert isinstance(registry.read(f"{module}:arrays", "test"), wb.data.ArrayDataset)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("{}:Mien", "has no 'Mien'; did you mean 'Mine'"),
        ("no_such_module_at_all:x", "cannot be imported: No module named 'no_such_module_at_all'; expected package"),
        ("a b:x", "'a b' is no module's name"),
        ("{}:number", "is a int; expected a class or function"),
        ("{}:stream", "made no data set for 'train': .*read only once"),
        ("{}:fails", "made no data set for 'train': OSError: no disk"),
        ("{}:without", "takes neither split nor train"),
        ("cifra10", "did you mean 'cifar10'"),
        (
            "zzz",
            "choose from cifar10, cifar100, digits, fashion_mnist, folder, hf, imagenet, list, mnist, text, or package",
        ),
    ],
)
def test_names_that_do_not_work(module, name, match):
    with pytest.raises(DataError, match=match):
        registry.read(name.format(module), "train")


def test_the_path_is_given_back(module):
    import sys

    before = list(sys.path)
    imported.find(f"{module}:Mine")
    assert sys.path == before


def test_readers_with_a_place_of_their_own(folder):
    train, test = (registry.read("folder", split, str(folder), size=4) for split in ("train", "test"))
    assert (len(train), len(test), tuple(train[0][0].shape)) == (13, 4, (3, 4, 4))
    whole = registry.read("folder", "test", str(folder), in_memory=True)
    assert isinstance(whole, wb.data.ArrayDataset)
    assert registry.options("folder") == {"on_error", "size", "test_share", "seed", "in_memory"}
    assert registry.options("digits") == set()
    with pytest.raises(DataError, match="say which folder of images: data"):
        registry.read("folder", "train")
    with pytest.raises(DataError, match="digits is embedded"):
        registry.read("digits", "train", "x")
    with pytest.raises(DataError, match=r"data set folder: .*unexpected keyword argument 'colour'"):
        registry.read("folder", "train", str(folder), colour=3)


def test_which_reader_is_for_a_path(folder, tmp_path):
    for name in ("a.csv", "b.JSONL", "c.parquet", "d.zip"):
        (tmp_path / name).write_text("")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train.parquet").write_text("")
    found = [registry.guess(tmp_path / name) for name in ("a.csv", "b.JSONL", "c.parquet", "hub", "insects")]
    assert found == ["list", "list", "hf", "hf", "folder"]
    with pytest.raises(DataError, match="neither a folder nor a list"):
        registry.guess(tmp_path / "d.zip")
    with pytest.raises(DataError, match="no data set and no path 'digit'; did you mean 'digits'"):
        registry.guess("digit")


def test_classes_of_anything():
    class Plain(Dataset):
        targets = torch.tensor([0, 3, 1])

    assert registry.classes_of(Plain()) == ("0", "1", "2", "3")
    assert registry.classes_of(wb.data.digits("test"))[:2] == ("0", "1")
    with pytest.raises(DataError, match="does not say its classes"):
        registry.classes_of([1, 2])
