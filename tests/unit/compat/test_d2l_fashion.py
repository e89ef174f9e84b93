"""Fashion-MNIST's loaders, over files in the book's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wholebatch.compat import d2l
from wholebatch.core.errors import DataError
from wholebatch.data import idx

Written = dict[str, tuple[np.ndarray, np.ndarray]]


def test_the_loaders_give_the_files_in_floats(book: Written) -> None:
    train_iter, test_iter = d2l.load_data_fashion_mnist(64)
    assert (len(train_iter), len(test_iter), train_iter.batch_size) == (4, 2, 64)
    X, y = next(iter(test_iter))
    images, labels = book["test"]
    assert (X.dtype, X.shape, y.dtype) == (torch.float32, (64, 1, 28, 28), torch.int64)
    assert torch.equal(X[:, 0], torch.from_numpy(images[:64]).float() / 255)
    assert y.tolist() == labels[:64].tolist()
    assert 0.9 < X.max() <= 1
    seen = torch.cat([X for X, _ in train_iter])[:, 0]
    whole = torch.from_numpy(book["train"][0]).float() / 255
    assert not torch.equal(seen, whole)  # shuffled
    assert sorted(seen.flatten(1).tolist()) == sorted(whole.flatten(1).tolist())


def test_the_order_is_that_of_a_torch_loader_after_the_same_seed(book: Written) -> None:
    torch.manual_seed(7)
    ours = torch.cat([y for _, y in d2l.load_data_fashion_mnist(50)[0]])
    torch.manual_seed(7)
    plain = torch.utils.data.DataLoader(torch.from_numpy(book["train"][1].astype(np.int64)), 50, shuffle=True)
    assert torch.equal(ours, torch.cat(list(plain)))


@pytest.mark.parametrize(("resize", "size"), [(64, (64, 64)), ((20, 30), (20, 30)), ([40], (40, 40))])
def test_resized_as_pillow_does(book: Written, resize: object, size: tuple[int, int]) -> None:
    _, test_iter = d2l.load_data_fashion_mnist(batch_size=32, resize=resize)
    X, _ = next(iter(test_iter))
    assert X.shape == (32, 1, *size)
    one = Image.fromarray(book["test"][0][3]).resize(size[::-1], Image.Resampling.BILINEAR)
    assert torch.equal(X[3, 0], torch.from_numpy(np.array(one)).float() / 255)


def test_a_sample_and_another_loader_over_the_data(book: Written) -> None:
    data = d2l.load_data_fashion_mnist(32)[1].dataset
    image, label = data[2]
    assert (image.shape, type(label), label) == ((1, 28, 28), int, int(book["test"][1][2]))
    assert data.classes[9] == "ankle boot"
    X, y = next(iter(torch.utils.data.DataLoader(data, 10, num_workers=0)))
    assert X.shape == (10, 1, 28, 28)
    assert y.tolist() == data.targets[:10].tolist()


def test_root_and_a_folder_without_files(book: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    with pytest.raises(DataError, match=r"\.\./data/FashionMNIST/raw.*debian.*root="):
        d2l.load_data_fashion_mnist(32)
    assert len(d2l.load_data_fashion_mnist(32, root="../../data")[1].dataset) == 90
    assert len(d2l.load_data_fashion_mnist(32, root=tmp_path / "data" / "FashionMNIST" / "raw")[1].dataset) == 90


def test_labels_and_workers() -> None:
    assert d2l.get_fashion_mnist_labels(torch.tensor([0, 9, 5])) == ["t-shirt", "ankle boot", "sandal"]
    assert d2l.get_fashion_mnist_labels([8]) == ["bag"]
    assert d2l.get_dataloader_workers() == 4


@pytest.mark.parametrize("flat", [False, True])
def test_predictions_are_shown_with_both_names(flat: bool) -> None:
    X = torch.rand(3, 1, 28, 28)
    y = torch.tensor([9, 0, 1])
    if flat:
        X = X.flatten(1)
    d2l.predict_ch3(lambda X: torch.eye(10)[[9, 9, 1]], [(X, y)], n=2)
    cells = d2l.plt.gcf().axes
    assert [cell.get_title() for cell in cells] == ["ankle boot\nankle boot", "t-shirt\nankle boot"]
    assert np.allclose(cells[1].images[0].get_array(), X[1].reshape(28, 28))
    d2l.predict_ch3(lambda X: torch.eye(10)[[9, 9, 1]], [(X, y)])  # fewer than six
    assert len(d2l.plt.gcf().axes) == 3


def test_predictions_of_images_of_another_size() -> None:
    X = torch.rand(2, 1, 8, 6)
    d2l.predict_ch3(lambda X: torch.eye(10)[[9, 9]], [(X, torch.tensor([9, 0]))])
    assert np.allclose(d2l.plt.gcf().axes[1].images[0].get_array(), X[1, 0])
