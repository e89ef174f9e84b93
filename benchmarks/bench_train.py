"""What ``train`` costs on data in memory, compared with the loop that people write over torch's DataLoader.

Both train the same model on the same data for the same number of epochs, accumulate the gradient over four
micro-batches of 64 and keep a running loss; ours also counts the accuracy and keeps records.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import wholebatch as wb
from benchmarks.timing import one_thread, ratio

EPOCHS = 2
ROUNDS = 15


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def by_hand(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> float:
    """The loop of a careful person: loss divided by the number of micro-batches, no read but at the end."""
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
    total = torch.zeros(())
    for _ in range(epochs):
        total = torch.zeros(())
        for number, (inputs, targets) in enumerate(loader, start=1):
            loss = criterion(model(inputs), targets) / 4
            loss.backward()
            total += loss.detach()
            if number % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
    return total.item()


def in_memory() -> float:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 32, generator=generator), torch.randint(10, (4096,), generator=generator)
    first, second = _model(), _model()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)

    def ours() -> float:
        history = wb.train(
            first,
            (x, y),
            loss=nn.CrossEntropyLoss(),
            optimizer=optimizer,
            batch_size=256,
            micro_batch=64,
            epochs=EPOCHS,
            display=False,
        )
        return float(history.last("train")["loss"])

    return ratio(ours, lambda: by_hand(second, x, y, EPOCHS), ROUNDS)


def run() -> list[tuple[str, float, float]]:
    """Return (claim, measured ratio, bar) for each claim."""
    with one_thread():
        return [("train on data in memory, 4 x 64, to a loop over DataLoader", in_memory(), 0.65)]
