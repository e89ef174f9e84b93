"""Which names of d2l there are, and what is said about the others."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

from wholebatch.compat import d2l
from wholebatch.core.errors import InputError, InputTypeError

ASKED = {
    "Accumulator", "Animator", "Timer", "accuracy",
    "size", "evaluate_accuracy", "evaluate_accuracy_gpu", "evaluate_loss",
    "train_batch_ch13", "train_ch13", "train_epoch_ch3", "train_ch3",
    "predict_ch3", "train_ch6", "CosineScheduler", "FactorScheduler",
    "MultiFactorScheduler", "SquareRootScheduler", "cpu", "gpu",
    "num_gpus", "try_gpu", "try_all_gpus", "plot",
    "set_axes", "set_figsize", "use_svg_display", "show_images",
    "split_batch", "Residual", "resnet18", "load_array",
    "load_data_fashion_mnist", "get_fashion_mnist_labels", "get_dataloader_workers", "grad_clipping",
    "sgd", "synthetic_data", "linreg", "squared_loss",
    "plt", "arange", "zeros", "ones",
    "tensor", "reshape", "normal", "numpy",
    "reduce_sum", "reduce_mean", "argmax", "astype",
    "matmul", "to", "concat", "stack",
    "float32", "int32",
}  # fmt: skip


def test_all_names_are_there() -> None:
    assert set(d2l.__all__) >= ASKED
    assert dir(d2l) == sorted(d2l.__all__)
    assert len(set(d2l.__all__)) == len(d2l.__all__)
    for name in d2l.__all__:
        assert getattr(d2l, name) is not None
    from wholebatch.compat.d2l import Accumulator, plt, reduce_sum

    assert Accumulator is d2l.Accumulator
    assert plt.__name__ == "matplotlib.pyplot"
    assert reduce_sum is d2l.reduce_sum


def test_the_aliases() -> None:
    x = d2l.tensor([[1.0, 5.0, 3.0], [4.0, 2.0, 6.0]])
    assert d2l.reduce_sum(x, 0, keepdim=True).tolist() == [[5.0, 7.0, 9.0]]
    assert d2l.reduce_mean(x, 1).tolist() == [3.0, 4.0]
    assert d2l.argmax(x, axis=1).tolist() == [1, 2]
    assert d2l.astype(x, torch.int64).dtype is torch.int64
    assert d2l.reshape(x, (-1, 1)).shape == (6, 1)
    assert d2l.size(x) == 6
    assert d2l.to(x, d2l.cpu()) is x
    assert d2l.concat((x, x), dim=0).shape == (4, 3)
    assert d2l.transpose(x).shape == (3, 2)
    assert isinstance(d2l.numpy(x.requires_grad_()), np.ndarray)
    assert d2l.float32 is torch.float32
    assert d2l.matmul is torch.matmul


def test_the_modules_that_the_book_reaches_through_the_package() -> None:
    assert d2l.np is np
    assert (d2l.torch, d2l.nn, d2l.F, d2l.data) == (torch, nn, nn.functional, torch.utils.data)
    assert (d2l.math, d2l.os, d2l.time.__name__, d2l.Image.__name__) == (math, os, "time", "PIL.Image")


def test_a_name_that_is_not_covered_says_what_to_use() -> None:
    with pytest.raises(AttributeError, match=r"does not cover 'Vocab': text and sequence models are not covered"):
        _ = d2l.Vocab
    with pytest.raises(AttributeError, match=r"'DATA_HUB': nothing is downloaded here"):
        _ = d2l.DATA_HUB
    with pytest.raises(AttributeError, match=r"does not cover 'acuracy'; did you mean 'accuracy'\?; it has .*Animator"):
        _ = d2l.acuracy
    for name in ("Module", "HyperParameters", "add_to_class", "DataModule", "Trainer", "Classifier", "ProgressBoard"):
        with pytest.raises(AttributeError, match=rf"'{name}': the classes of the English .* train_ch6"):
            getattr(d2l, name)
    with pytest.raises(AttributeError, match="'transforms': import it by itself"):
        _ = d2l.transforms
    assert not hasattr(d2l, "Trainer")
    with pytest.raises(ImportError):
        from wholebatch.compat.d2l import Trainer  # noqa: F401


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert d2l.try_gpu() == d2l.try_gpu(3) == d2l.cpu() == torch.device("cpu")
    assert d2l.try_all_gpus() == [torch.device("cpu")]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert d2l.num_gpus() == 2
    assert (d2l.try_gpu(), d2l.try_gpu(1), d2l.try_gpu(2)) == (d2l.gpu(0), d2l.gpu(1), d2l.cpu())
    assert d2l.try_all_gpus() == [torch.device("cuda:0"), torch.device("cuda:1")]


def test_a_batch_is_split_as_scatter_does() -> None:
    X, y = torch.arange(20.0, requires_grad=True).reshape(5, 4), torch.arange(5)
    parts, labels = d2l.split_batch(X, y, [d2l.cpu(), "cpu"])
    assert [len(part) for part in parts] == [3, 2]
    assert torch.equal(torch.cat(parts), X)
    assert torch.equal(torch.cat(labels), y)
    assert parts[1].requires_grad
    assert len(d2l.split_batch(X[:2], y[:2], [d2l.cpu()] * 3)[0]) == 2
    with pytest.raises(InputError, match="X has 5 samples and y has 4"):
        d2l.split_batch(X, y[:4], [d2l.cpu()])


def test_a_residual_block_in_both_editions_forms() -> None:
    for form in (d2l.Residual(3, 6, use_1x1conv=True, strides=2), d2l.Residual(6, use_1x1conv=True, strides=2),
                 d2l.Residual(3, 6, True, 2), d2l.Residual(6, True, 2),
                 d2l.Residual(input_channels=3, num_channels=6, use_1x1conv=True, strides=2),
                 d2l.Residual(3, num_channels=6, use_1x1conv=True, strides=2),
                 d2l.Residual(num_channels=6, use_1x1conv=True, strides=2)):  # fmt: skip
        x = torch.randn(4, 3, 6, 6)
        y = nn.functional.relu(form.bn2(form.conv2(nn.functional.relu(form.bn1(form.conv1(x))))) + form.conv3(x))
        assert y.shape == (4, 6, 3, 3)
        assert torch.equal(form(x), y)
        assert sorted(name for name, _ in form.named_children()) == ["bn1", "bn2", "conv1", "conv2", "conv3"]
    for form in (d2l.Residual(3, 3), d2l.Residual(3)):
        x = torch.randn(2, 3, 5, 5)
        assert form.conv3 is None
        assert torch.equal(
            form(x), nn.functional.relu(form.bn2(form.conv2(nn.functional.relu(form.bn1(form.conv1(x))))) + x)
        )
    wrong = [
        ((), {}),
        ((3, 6, True, 2, 1), {}),
        ((3, 6), {"stride": 2}),
        ((6,), {"x": 1}),
        ((3, 6), {"num_channels": 6}),
    ]
    for arguments, options in wrong:
        with pytest.raises(InputTypeError, match="is neither"):
            d2l.Residual(*arguments, **options)


def test_the_small_resnet() -> None:
    net = d2l.resnet18(10, in_channels=3)
    assert net(torch.randn(2, 3, 24, 24)).shape == (2, 10)
    assert [type(one) for one in net][:3] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    blocks = [block for name, part in net.named_children() if name.startswith("resnet_block") for block in part]
    assert [block.conv3 is not None for block in blocks] == [False, False, True, False, True, False, True, False]
    assert sum(parameter.numel() for parameter in d2l.resnet18(10).parameters()) == 11_175_818


def test_gradients_are_clipped_to_their_common_norm() -> None:
    net = nn.Linear(2, 1)
    net.weight.grad, net.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    d2l.grad_clipping(net, 10)
    assert net.bias.grad.tolist() == [4.0]
    d2l.grad_clipping(net, 1)
    assert torch.allclose(net.weight.grad, torch.tensor([[0.6, 0.0]]))
    assert torch.allclose(net.bias.grad, torch.tensor([0.8]))

    class Scratch:
        params = (torch.ones(4, requires_grad=True), torch.ones(1, requires_grad=True))

    Scratch.params[0].grad = torch.full((4,), 2.0)
    d2l.grad_clipping(Scratch, 2)
    assert Scratch.params[0].grad.tolist() == [1.0] * 4


def test_linear_regression_parts() -> None:
    w = torch.tensor([2.0, -3.4])
    torch.manual_seed(3)
    X, y = d2l.synthetic_data(w, 4.2, 1000)
    torch.manual_seed(3)
    again = torch.normal(0, 1, (1000, 2))
    noise = torch.normal(0, 0.01, (1000,))
    assert torch.equal(X, again)
    assert torch.equal(y, (again @ w + 4.2 + noise).reshape(-1, 1))
    assert d2l.squared_loss(torch.tensor([[1.0], [4.0]]), torch.tensor([0.0, 2.0])).tolist() == [[0.5], [2.0]]
    assert d2l.linreg(X, w, 4.2).shape == (1000,)
    param, unused = torch.tensor([1.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    param.grad = torch.tensor([6.0])
    d2l.sgd([param, unused], 0.5, 3)
    assert (param.item(), param.grad.item(), unused.item()) == (0.0, 0.0, 1.0)
    batches = [len(batch[0]) for batch in d2l.load_array((X, y), 300)]
    assert batches == [300, 300, 300, 100]
    ordered = next(iter(d2l.load_array((X, y), 4, is_train=False)))
    assert torch.equal(ordered[0], X[:4])
    assert not torch.equal(next(iter(d2l.load_array((X, y), 4)))[0], X[:4])
