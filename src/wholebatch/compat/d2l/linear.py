"""Linear regression from scratch: its data, model, loss and optimizer; and clipping, which came later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def synthetic_data(w: Tensor, b: Any, num_examples: int) -> tuple[Tensor, Tensor]:
    """Return X, standard normal (num_examples, len(w)), and y = Xw + b + noise of deviation 0.01, a column.

    The draws come from torch's default generator, in the book's order.
    """
    X = torch.normal(0, 1, (num_examples, len(w)))
    y = X @ w + b
    return X, (y + torch.normal(0, 0.01, y.shape)).reshape(-1, 1)


def load_array(data_arrays: Sequence[Tensor], batch_size: int, is_train: bool = True) -> DataLoader[Any]:
    """Return a ``DataLoader`` over tensors of one length, shuffled where ``is_train``."""
    return DataLoader(TensorDataset(*data_arrays), batch_size, shuffle=is_train)


def linreg(X: Tensor, w: Tensor, b: Any) -> Tensor:
    """Return Xw + b."""
    return torch.matmul(X, w) + b


def squared_loss(y_hat: Tensor, y: Tensor) -> Tensor:
    """Return (y_hat − y)² / 2, elementwise in the shape of ``y_hat``."""
    return (y_hat - y.reshape(y_hat.shape)) ** 2 / 2


def sgd(params: Iterable[Tensor], lr: float, batch_size: int) -> None:
    """Subtract lr · gradient / batch_size from each parameter and set its gradient to 0.

    The gradient is meant to be that of a *sum* over ``batch_size`` samples. Parameters without one stay.
    """
    with torch.no_grad():
        for param in params:
            if param.grad is not None:
                param -= lr * param.grad / batch_size
                param.grad.zero_()


def grad_clipping(net: Any, theta: float) -> None:
    """Scale all gradients so that their common norm is at most ``theta``; below it they stay.

    Args:
        net: a module, or an object whose ``params`` are a list of tensors.
        theta: the largest norm.
    """
    params = net.parameters() if isinstance(net, nn.Module) else net.params
    grads = [param.grad for param in params if param.requires_grad and param.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if norm > theta:
        for grad in grads:
            grad.mul_((theta / norm).to(grad.device))
