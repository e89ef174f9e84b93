"""A language model on paragraphs of uneven length: the step is that of the mean over all bytes of the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb

BAR = 1e-12


def batch() -> tuple[Tensor, Tensor]:
    """Eleven paragraphs, the shortest first, so that micro-batches differ in how many bytes count."""
    data = wb.data.text("test", length=40)
    counts = (data.targets != -100).sum(1)
    order = counts.argsort(stable=True)
    return data.take(order[torch.linspace(0, len(order) - 1, 11).long()])


def model(dropout: float = 0.0) -> nn.Module:
    made = wb.models.build("transformer_lm", seed=2, length=40, width=16, depth=2, heads=2, dropout=dropout).double()
    for parameter in made.parameters():
        parameter.data.mul_(5)  # away from the almost equal logits of the beginning
    return made


def gradient(of: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in of.parameters()])


def stepped(micro_batch: int, dropout: float = 0.0, given: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
    net = model(dropout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step = wb.Step(net, optimizer, nn.CrossEntropyLoss(), micro_batch=micro_batch, seed=3)
    report = step(given or batch())
    return gradient(net), torch.tensor(report.loss, dtype=torch.float64), torch.tensor(report.weight)


def exact() -> tuple[Tensor, Tensor]:
    """One call of torch's own loss on the whole batch."""
    net, (inputs, targets) = model(), batch()
    loss = F.cross_entropy(net(inputs), targets)
    loss.backward()
    return gradient(net), loss.detach()


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 7, 11])
def test_any_micro_batch_gives_the_gradient_of_the_whole_batch(micro_batch: int) -> None:
    truth, loss = exact()
    found, mean, weight = stepped(micro_batch)
    assert (found - truth).norm() < BAR * truth.norm()
    assert abs(mean - loss) < BAR * loss
    assert weight == (batch()[1] != -100).sum()


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_the_mean_of_means_is_another_gradient(micro_batch: int) -> None:
    """What dividing each micro-batch's mean by their number gives, so that the test above has something to find."""
    truth, _ = exact()
    net, (inputs, targets) = model(), batch()
    parts = list(zip(inputs.split(micro_batch), targets.split(micro_batch), strict=True))
    for x, y in parts:
        (F.cross_entropy(net(x), y) / len(parts)).backward()
    assert (gradient(net) - truth).norm() > 0.1 * truth.norm()


def test_what_stands_in_the_padding_does_not_matter() -> None:
    inputs, targets = batch()
    other = torch.where(targets == -100, torch.randint(1, 256, inputs.shape), inputs)
    assert (other != inputs).any()
    truth, *_ = stepped(4)
    found, *_ = stepped(4, given=(other, targets))
    padded, *_ = stepped(4, given=(F.pad(inputs[:, :39], (0, 1)), F.pad(targets[:, :39], (0, 1), value=-100)))
    cut, *_ = stepped(4, given=(inputs[:, :39], targets[:, :39]))
    scale = truth.norm()
    assert (found - truth).norm() < BAR * scale
    assert (padded - cut).norm() < BAR * scale
    assert (cut - truth).norm() > 1e-6 * scale


def test_dropout_is_keyed() -> None:
    truth, *_ = stepped(11, dropout=0.3)
    for micro_batch in (1, 4):
        found, *_ = stepped(micro_batch, dropout=0.3)
        assert (found - truth).norm() < BAR * truth.norm()
    assert (truth - exact()[0]).norm() > 0.1 * truth.norm()


def test_a_micro_batch_in_which_nothing_counts() -> None:
    inputs, targets = batch()
    targets = targets.clone()
    targets[4:8] = -100
    truth, *_ = stepped(11, given=(inputs, targets))
    found, _, weight = stepped(4, given=(inputs, targets))
    assert found.isfinite().all()
    assert (found - truth).norm() < BAR * truth.norm()
    assert weight == (targets != -100).sum()


def test_accuracy_and_loss_count_bytes() -> None:
    inputs, targets = batch()
    net = model().eval()
    with torch.no_grad():
        logits = net(inputs)
    counts = targets != -100
    even = torch.arange(targets.shape[1]) % 2 == 0
    targets = torch.where(counts & even, logits.argmax(1), targets)  # some half of them is right
    result = wb.evaluate(net, (inputs, targets), loss=nn.CrossEntropyLoss(), batch_size=4)
    right = ((logits.argmax(1) == targets) & counts).sum().item() / counts.sum().item()
    assert 0.4 < right < 0.6
    assert result["accuracy"] == pytest.approx(right, abs=1e-12)
    assert result["loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), rel=1e-12)
    assert result["samples"] == len(inputs)
