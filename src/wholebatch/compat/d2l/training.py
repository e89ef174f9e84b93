"""The book's three ways to train: chapter 3 (by hand or by torch), 6 (one device), 13 (several GPUs)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wholebatch.compat.d2l.accumulator import Accumulator
from wholebatch.compat.d2l.animator import Animator
from wholebatch.compat.d2l.devices import try_all_gpus, try_gpu
from wholebatch.compat.d2l.evaluation import accuracy, evaluate_accuracy, evaluate_accuracy_gpu, loss_sum
from wholebatch.compat.d2l.fashion import get_fashion_mnist_labels
from wholebatch.compat.d2l.figures import show_images
from wholebatch.compat.d2l.timer import Timer
from wholebatch.core import tree
from wholebatch.core.errors import ConfigError, DataError

_CURVES = ["train loss", "train acc", "test acc"]
_NO_BATCH = "train_iter gave no batch, so there is nothing to train on; an iterator can be read only once"


def train_epoch_ch3(
    net: Callable[..., Tensor], train_iter: Iterable[Any], loss: Callable[..., Tensor], updater: Any
) -> tuple[float, float]:
    """Train for one epoch; return the mean loss and the accuracy over it.

    Args:
        net: a module, put into training mode, or any function of the inputs.
        train_iter: gives (X, y).
        loss: gives one loss per sample.
        updater: a torch optimizer, which steps on the *mean* of the losses, or a function that is called with the
            number of samples after the gradient of their *sum* has been computed.

    Raises:
        DataError: there are no data.
    """
    if isinstance(net, nn.Module):
        net.train()
    metric = Accumulator(3)
    for X, y in train_iter:
        y_hat = net(X)
        losses = loss(y_hat, y)
        if isinstance(updater, Optimizer):
            updater.zero_grad()
            losses.mean().backward()
            updater.step()
        else:
            losses.sum().backward()
            updater(tree.count(X))
        metric.add(loss_sum(loss, losses, y.numel()), accuracy(y_hat, y), y.numel())
    if not metric[2]:
        raise DataError(_NO_BATCH)
    return metric[0] / metric[2], metric[1] / metric[2]


def train_ch3(
    net: Callable[..., Tensor],
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    loss: Callable[..., Tensor],
    num_epochs: int,
    updater: Any,
) -> None:
    """Train for ``num_epochs`` by :func:`train_epoch_ch3`, evaluate after each, and draw.

    The book's function ends with assertions about the accuracy reached; this one does not.
    """
    _check(num_epochs)
    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], ylim=[0.3, 0.9], legend=_CURVES)
    for epoch in range(num_epochs):
        trained = train_epoch_ch3(net, train_iter, loss, updater)
        animator.add(epoch + 1, (*trained, evaluate_accuracy(net, test_iter)))


def predict_ch3(net: Callable[..., Tensor], test_iter: Iterable[Any], n: int = 6) -> None:
    """Show the first ``n`` images of the first batch, with the true name of their class above the predicted one."""
    X, y = next(iter(test_iter))
    trues = get_fashion_mnist_labels(y[:n])
    preds = get_fashion_mnist_labels(net(X).argmax(dim=1)[:n])
    images = X[:n].reshape(len(trues), *((28, 28) if X.ndim < 3 else X.shape[-2:]))
    show_images(images, 1, len(trues), titles=[f"{true}\n{pred}" for true, pred in zip(trues, preds, strict=True)])


def train_ch6(
    net: nn.Module, train_iter: Iterable[Any], test_iter: Iterable[Any], num_epochs: int, lr: float, device: Any = None
) -> None:
    """Train on one device by SGD on the *mean* cross entropy, from weights drawn anew (Xavier uniform), and draw.

    Prints ``training on`` the device at first, and at last the loss, the accuracies and the samples per second. Without
    ``device``, as early editions allowed, it is :func:`try_gpu` at the time of the call.

    Raises:
        ConfigError: ``num_epochs`` is below 1.
        DataError: there are no data.
    """
    _check(num_epochs)
    device = try_gpu() if device is None else device
    _settle(net, train_iter)
    net.apply(_xavier)
    print("training on", device, flush=True)
    net.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    loss = nn.CrossEntropyLoss()

    def update(X: Any, y: Tensor) -> tuple[Tensor, float, int, int]:
        X, y = tree.to_device(X, device), y.to(device)
        optimizer.zero_grad()
        y_hat = net(X)
        losses = loss(y_hat, y)
        losses.backward()
        optimizer.step()
        samples = tree.count(X)
        return losses.detach() * samples, accuracy(y_hat, y), samples, samples

    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], legend=_CURVES)
    _train(net, train_iter, test_iter, num_epochs, update, animator, str(device))


def _xavier(module: nn.Module) -> None:
    if type(module) in (nn.Linear, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)  # type: ignore[arg-type]


def _settle(net: nn.Module, train_iter: Iterable[Any]) -> None:
    """Let layers that wait for their input's size see one, or they would be initialised without Xavier."""
    waiting = [one for one in net.parameters() if isinstance(one, nn.UninitializedParameter)]
    if waiting:
        X, _ = next(iter(train_iter))
        net.eval()  # running averages stay
        with torch.no_grad():
            net(tree.map_tensors(lambda part: part[:1].to(waiting[0].device), X))


def train_batch_ch13(
    net: Callable[..., Tensor],
    X: Any,
    y: Tensor,
    loss: Callable[..., Tensor],
    trainer: Optimizer,
    devices: Sequence[Any],
) -> tuple[Tensor, float]:
    """Make one optimizer step on the *sum* of the losses of a batch; return that sum and how many were right.

    Args:
        net: a module, usually a ``DataParallel`` over ``devices``.
        X: the inputs: a tensor, or a list of them.
        y: the labels.
        loss: gives one loss per sample. The books' learning rates are meant for their sum: divided by the batch size,
            as elsewhere, it would learn that many times slower.
        trainer: the optimizer.
        devices: the batch goes to the first one.

    Returns:
        The sum of the losses, a tensor without a graph, and the number of correct predictions.
    """
    X, y = tree.to_device(X, devices[0]), y.to(devices[0])
    if isinstance(net, nn.Module):
        net.train()
    trainer.zero_grad()
    pred = net(X)
    losses = loss(pred, y)
    losses.sum().backward()
    trainer.step()
    return loss_sum(loss, losses, len(y)), accuracy(pred, y)


def train_ch13(
    net: nn.Module,
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    loss: Callable[..., Tensor],
    trainer: Optimizer,
    num_epochs: int,
    devices: Sequence[Any] | None = None,
) -> None:
    """Train by :func:`train_batch_ch13`, from one process on all ``devices``, and draw.

    ``devices`` is :func:`try_all_gpus` at the time of the call. At last the loss, the accuracies and the samples per
    second are printed.

    Raises:
        ConfigError: ``num_epochs`` is below 1.
        DataError: there are no data.
    """
    _check(num_epochs)
    devices = try_all_gpus() if devices is None else list(devices)
    net.to(devices[0])
    # On the CPU and on a single GPU DataParallel would only pass calls on, or refuse the device.
    shared: nn.Module = nn.DataParallel(net, device_ids=devices) if len(devices) > 1 else net

    def update(X: Any, y: Tensor) -> tuple[Tensor, float, int, int]:
        total, correct = train_batch_ch13(shared, X, y, loss, trainer, devices)
        return total, correct, y.shape[0], y.numel()

    animator = Animator(xlabel="epoch", xlim=[1, num_epochs], ylim=[0, 1], legend=_CURVES)
    _train(shared, train_iter, test_iter, num_epochs, update, animator, str(devices))


def _train(
    net: nn.Module,
    train_iter: Iterable[Any],
    test_iter: Iterable[Any],
    num_epochs: int,
    update: Callable[[Any, Tensor], tuple[Tensor, float, int, int]],
    animator: Animator,
    where: str,
) -> None:
    """Epochs of ``update``, which gives (loss sum, correct, samples, labels), five points each, and two lines."""
    timer = Timer()
    timed = 0.0  # samples
    batches = _length(train_iter)
    for epoch in range(num_epochs):
        metric = Accumulator(4)
        net.train()
        done = 0
        for X, y in train_iter:
            timer.start()
            metric.add(*update(X, y))
            timer.stop(read=False)
            done += 1
            # Five points an epoch, or one per batch where there are fewer; the last one comes below.
            if batches is not None and done % max(1, batches // 5) == 0 and done < batches:
                animator.add(epoch + done / batches, (metric[0] / metric[2], metric[1] / metric[3], None))
        if not done:
            raise DataError(_NO_BATCH)
        batches, timed = done, timed + metric[2]
        train_loss, train_acc = metric[0] / metric[2], metric[1] / metric[3]
        animator.add(epoch + 1, (train_loss, train_acc, None))
        test_acc = evaluate_accuracy_gpu(net, test_iter)
        animator.add(epoch + 1, (None, None, test_acc))
    print(f"loss {train_loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}")
    print(f"{timed / timer.sum():.1f} examples/sec on {where}", flush=True)


def _length(data_iter: Any) -> int | None:
    """How many batches a loader has, None where it cannot say."""
    try:
        return len(data_iter)
    except TypeError:
        return None


def _check(num_epochs: int) -> None:
    if num_epochs < 1:
        raise ConfigError(f"num_epochs={num_epochs}; expected a whole number, 1 or more")
