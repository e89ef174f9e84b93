"""Dict batches in the trainer: named keys, images turned, the same as with tensors in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import wholebatch as wb

CONFIG = {"size": 8, "random_crop": False}


class Wide(nn.Module):
    """Takes N×3×8×8 only: the first axis behind the samples is the channels'."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3))
        self.double()

    def forward(self, images):
        return self.body(images.double())


@pytest.fixture
def train_data(tree):
    tree.unpack()
    return wb.data.ImageNetTrain(CONFIG, data_root=tree.root)


@pytest.fixture
def in_memory(train_data):
    images = torch.stack([torch.from_numpy(item["image"]) for item in train_data]).permute(0, 3, 1, 2)
    return images, train_data.targets


def trained(data, loss=None, **more):
    model = Wide()
    settings = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "epochs": 2, "display": False, "seed": 3}
    settings |= {"loss": nn.CrossEntropyLoss() if loss is None else loss, "batch_size": 5, **more}
    history = wb.train(model, data, **settings)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), history


def close(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=1e-14)


def test_imagenet_trains_as_it_is(train_data, in_memory):
    reference = trained(in_memory, eval_data=in_memory)
    got = trained(train_data, eval_data=train_data)
    close(got, reference)
    assert got[1].last("test")["accuracy"] == reference[1].last("test")["accuracy"]
    close(trained(train_data, micro_batch=2), reference)
    close(trained(train_data, inputs="image", targets="class_label", eval_data=train_data), reference)
    loader = wb.data.BatchLoader(train_data, 5, seed=3)
    close(trained(loader, batch_size=None, eval_data=loader, inputs="image"), reference)
    assert loader.transform is None
    assert loader.epoch == 2
    assert isinstance(next(iter(loader)), dict)


def test_a_loss_of_ones_own_gets_the_dict(train_data, in_memory):
    def loss(model, batch):
        return F.cross_entropy(model(batch["image"].permute(0, 3, 1, 2)), batch["class_label"], reduction="none")

    close(trained(train_data, loss), trained(in_memory))

    def of_pairs(model, batch):
        images, labels = batch
        return F.cross_entropy(model(images), labels, reduction="none")

    close(trained(train_data, of_pairs, inputs="image"), trained(in_memory))


def test_a_loader_of_torch_and_one_with_a_selection_of_its_own(train_data, in_memory):
    reference = trained(in_memory)
    select = wb.data.Select("image", "class_label", channels_first=True)
    close(trained(wb.data.BatchLoader(train_data, 5, seed=3, transform=select), batch_size=None), reference)
    ordered = DataLoader(train_data, batch_size=5)
    pairs = list(zip(*in_memory, strict=True))
    close(trained(ordered, batch_size=None), trained(DataLoader(pairs, batch_size=5), batch_size=None))


def test_evaluation_of_dicts(train_data, in_memory):
    model = Wide()
    expected = wb.evaluate(model, in_memory, loss=nn.CrossEntropyLoss())
    assert wb.evaluate(model, train_data, loss=nn.CrossEntropyLoss(), batch_size=5) == pytest.approx(expected)
    assert wb.evaluate(model, train_data)["accuracy"] == expected["accuracy"]
    top = wb.Accuracy(3, topk=(1, 2))
    wb.evaluate(model, train_data, metrics=top, inputs="image", targets="class_label")
    same = wb.Accuracy(3, topk=(1, 2))
    wb.evaluate(model, in_memory, metrics=same)
    assert top.topk == same.topk
    assert top.confusion.tolist() == same.confusion.tolist()


class Rows(Dataset):
    """Dicts with names of their own, channels first, and a text."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": self.images[index], "kind": int(self.labels[index]), "note": "a word"}


def test_any_data_set_of_dicts_by_its_keys(in_memory):
    rows = Rows(*in_memory)
    reference = trained(in_memory)
    close(trained(rows, inputs="pixels", targets="kind"), reference)
    close(trained(rows, inputs=["pixels"], targets=["kind"], eval_data=rows), reference)
    as_tensors = {"pixels": in_memory[0], "kind": in_memory[1]}
    close(trained(as_tensors, inputs="pixels", targets="kind"), reference)
    with pytest.raises(wb.LossError, match=r"name the keys of a dict to wholebatch\.train: inputs=\.\.\., targets="):
        trained(rows)
    with pytest.raises(wb.DataError, match="no key 'pixel'; did you mean 'pixels'"):
        trained(rows, inputs="pixel", targets="kind")
    with pytest.raises(wb.DataError, match="names a key, but the batches are of tuple"):
        trained(in_memory, inputs="pixels", targets="kind")
    with pytest.raises(wb.DataError, match="without inputs"):
        trained(rows, targets="kind")


def test_paths_are_not_mistaken_for_images(tree):
    tree.unpack()
    paths = wb.data.ImageNetTrain(CONFIG, process_images=False, data_root=tree.root)
    with pytest.raises(wb.DataError, match="process_images=False"):
        trained(paths)


def test_a_run_goes_on_with_the_same_crops(tree, tmp_path):
    tree.unpack()
    data = wb.data.ImageNetTrain({"size": 8}, data_root=tree.root)  # random crops
    whole = trained(data, epochs=3)
    first = trained(data, epochs=2, run_dir=tmp_path / "run", checkpoint_every="1 epochs")
    assert not torch.equal(first[0], whole[0])
    close(trained(data, epochs=3, run_dir=tmp_path / "run", resume=True), whole)
