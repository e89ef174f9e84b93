"""d2l's training functions against loops written out by hand: the same weights, bit by bit, and the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wholebatch.compat import d2l
from wholebatch.compat.d2l import training
from wholebatch.core.errors import ConfigError, DataError

N, BATCH = 70, 16  # a last batch of 6


def samples() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(N, 1, 6, 6, generator=draw), torch.randint(0, 4, (N,), generator=draw)


def loader(shuffle: bool = True) -> Any:
    return d2l.load_array(samples(), BATCH, shuffle)


def small_net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4)
    )


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def right(net: Any, X: Tensor, y: Tensor) -> int:
    with torch.no_grad():
        return int((net(X).argmax(1) == y).sum())


def by_hand(net: nn.Module, lr: float, epochs: int, reduction: str) -> list[float]:
    """Train a net in the plainest way; the last epoch's mean loss and accuracy while training, and the test one."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    for _ in range(epochs):
        net.train()
        total = correct = 0.0
        for X, y in loader():
            optimizer.zero_grad()
            scores = net(X)
            losses = F.cross_entropy(scores, y, reduction="none")
            (losses.sum() if reduction == "sum" else losses.mean()).backward()
            optimizer.step()
            total += float(losses.detach().sum())
            correct += int((scores.argmax(1) == y).sum())
        net.eval()
        list(loader(False))  # an evaluation draws from the generator, too
    return [total / N, correct / N, right(net, *samples()) / N]


def test_chapter_3_with_a_torch_optimizer_averages() -> None:
    ours, theirs = small_net(), small_net()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.3)
    ours.eval()
    torch.manual_seed(2)
    for _ in range(2):
        result = d2l.train_epoch_ch3(ours, loader(), nn.CrossEntropyLoss(reduction="none"), optimizer)
        assert ours.training
        list(loader(False))
    torch.manual_seed(2)
    expected = by_hand(theirs, 0.3, 2, "mean")
    assert same(ours, theirs)
    assert result == pytest.approx(tuple(expected[:2]), rel=1e-6)


def test_chapter_3_with_a_function_sums() -> None:
    X, y = samples()
    start = torch.randn(36, 4) * 0.1
    W, b = start.clone().requires_grad_(), torch.zeros(4, requires_grad=True)
    seen: list[int] = []

    def net(X: Tensor) -> Tensor:
        return torch.softmax(X.reshape(-1, 36) @ W + b, 1)

    def cross_entropy(y_hat: Tensor, y: Tensor) -> Tensor:
        return -torch.log(y_hat[range(len(y_hat)), y])

    def updater(batch_size: int) -> None:
        seen.append(batch_size)
        d2l.sgd([W, b], 0.1, batch_size)

    d2l.train_epoch_ch3(net, loader(False), cross_entropy, updater)
    layer = nn.Linear(36, 4)
    layer.weight.data, layer.bias.data = start.t().clone(), torch.zeros(4)
    for part in range(0, N, BATCH):
        layer.zero_grad()
        F.cross_entropy(layer(X[part : part + BATCH].flatten(1)), y[part : part + BATCH]).backward()
        for parameter in layer.parameters():
            parameter.data -= 0.1 * parameter.grad
    assert seen == [16, 16, 16, 16, 6]
    assert torch.allclose(W, layer.weight.t(), atol=1e-6)
    assert torch.allclose(b, layer.bias, atol=1e-6)
    assert not torch.allclose(W, start, atol=1e-3)
    assert d2l.evaluate_accuracy(net, loader()) == right(net, X, y) / N


def test_train_ch3_ends_in_evaluation_mode_and_draws_three_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    animators = kept(monkeypatch)
    ours, theirs = small_net(), small_net()
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.3)
    d2l.train_ch3(ours, loader(), loader(False), nn.CrossEntropyLoss(reduction="none"), 3, optimizer)
    torch.manual_seed(2)
    expected = by_hand(theirs, 0.3, 3, "mean")
    assert same(ours, theirs)
    assert not ours.training
    (animator,) = animators
    assert animator.X == [[1, 2, 3]] * 3
    assert [y[-1] for y in animator.Y] == pytest.approx(expected, rel=1e-6)
    assert animator.axes[0].get_ylim() == (0.3, 0.9)


def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list of the animators made from here on."""
    made: list[Any] = []

    class Kept(d2l.Animator):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(training, "Animator", Kept)
    return made


def xavier(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)


LINES = r"loss (\d+\.\d{3}), train acc (\d\.\d{3}), test acc (\d\.\d{3})\n\d+\.\d examples/sec on "


def test_chapter_6(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    animators = kept(monkeypatch)
    ours, theirs = small_net(), small_net()
    torch.manual_seed(2)
    assert d2l.train_ch6(ours, loader(), loader(False), 3, 0.3, d2l.try_gpu()) is None
    torch.manual_seed(2)
    xavier(theirs)
    expected = by_hand(theirs, 0.3, 3, "mean")
    assert same(ours, theirs)
    assert not ours.training
    said = re.fullmatch("training on cpu\n" + LINES + "cpu\n", capsys.readouterr().out)
    assert said is not None
    assert [float(part) for part in said.groups()] == pytest.approx(expected, abs=6e-4)
    (animator,) = animators
    assert animator.X[0] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.4, 2.6, 2.8, 3])
    assert animator.X[2] == [1, 2, 3]
    assert [y[-1] for y in animator.Y] == pytest.approx(expected, rel=1e-6)


def test_chapter_6_draws_xavier_weights_for_lazy_layers_too() -> None:
    net = nn.Sequential(d2l.Residual(3, use_1x1conv=True), nn.Flatten(), nn.LazyLinear(4))
    d2l.train_ch6(net, loader(False), loader(False), 1, 1e-12, "cpu")
    bound = (6 / (3 * 36 + 4)) ** 0.5
    assert (
        bound * 0.9 < float(net[2].weight.detach().abs().max()) <= bound
    )  # torch's own would be below (1 / 108) ** 0.5


def test_chapter_13_steps_on_the_sum(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    animators = kept(monkeypatch)
    ours, theirs = small_net(), small_net()
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.01)
    d2l.train_ch13(ours, loader(), loader(False), nn.CrossEntropyLoss(reduction="none"), optimizer, 2)
    torch.manual_seed(2)
    expected = by_hand(theirs, 0.01, 2, "sum")
    assert same(ours, theirs)
    assert not ours.training
    said = re.fullmatch(LINES + r"\[device\(type='cpu'\)\]\n", capsys.readouterr().out)
    assert said is not None
    assert [float(part) for part in said.groups()] == pytest.approx(expected, abs=6e-4)
    assert animators[0].axes[0].get_ylim() == (0, 1)


def test_one_batch_of_chapter_13() -> None:
    ours, theirs = small_net().eval(), small_net()
    X, y = samples()
    losses = nn.CrossEntropyLoss(reduction="none")
    torch.manual_seed(4)
    total, correct = d2l.train_batch_ch13(ours, X, y, losses, torch.optim.SGD(ours.parameters(), lr=0.01), ["cpu"])
    torch.manual_seed(4)
    scores = theirs(X)
    losses(scores, y).sum().backward()
    torch.optim.SGD(theirs.parameters(), lr=0.01).step()
    assert same(ours, theirs)
    assert ours.training
    assert isinstance(total, Tensor)
    assert not total.requires_grad
    assert float(total) == pytest.approx(float(losses(scores, y).detach().sum()), rel=1e-6)
    assert type(correct) is float
    assert correct == int((scores.argmax(1) == y).sum())


class Two(nn.Module):
    """Takes a list of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(36, 4)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        first, second = inputs
        return self.layer((first + second).flatten(1))


class Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        X, y = samples()
        return [X[index], X[index] / 2], y[index]


def test_inputs_may_be_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    net = Two()
    pairs = torch.utils.data.DataLoader(Pairs(), 16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    before = d2l.evaluate_accuracy_gpu(net, pairs)
    d2l.train_ch13(net, pairs, pairs, nn.CrossEntropyLoss(reduction="none"), optimizer, 4)
    X, y = samples()
    assert d2l.evaluate_accuracy_gpu(net, pairs) == right(net, [X, X / 2], y) / N > before
    assert "test acc" in capsys.readouterr().out


def test_devices_are_resolved_at_the_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []
    monkeypatch.setattr(training, "try_all_gpus", lambda: asked.append(1) or [torch.device("cpu", 0)])
    net = small_net()
    d2l.train_ch13(net, loader(), loader(), nn.CrossEntropyLoss(reduction="none"), torch.optim.SGD(net.parameters()), 1)
    assert asked == [1]
    assert "on [device(type='cpu', index=0)]" in capsys.readouterr().out


def test_several_devices_are_served_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net is handed to DataParallel with all devices; what that does with them is torch's."""
    given: list[Any] = []

    class Recorded(nn.DataParallel):
        def __init__(self, module: nn.Module, device_ids: Any) -> None:
            given.append(list(device_ids))
            nn.Module.__init__(self)
            self.module = module

        def forward(self, *inputs: Any, **kwargs: Any) -> Any:
            return self.module(*inputs, **kwargs)

    monkeypatch.setattr(nn, "DataParallel", Recorded)
    net = small_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    devices = [torch.device("cpu"), torch.device("cpu")]
    d2l.train_ch13(net, loader(), loader(), nn.CrossEntropyLoss(reduction="none"), optimizer, 1, devices)
    assert given == [devices]
    assert not net.training


@pytest.mark.parametrize("batches", [1, 2, 3, 4])
def test_fewer_than_five_batches(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    animators = kept(monkeypatch)
    X, y = samples()
    few = d2l.load_array((X[: 4 * batches], y[: 4 * batches]), 4)
    d2l.train_ch6(small_net(), few, few, 1, 0.1, "cpu")
    net = small_net()
    d2l.train_ch13(net, few, few, nn.CrossEntropyLoss(reduction="none"), torch.optim.SGD(net.parameters()), 1)
    for animator in animators:
        assert animator.X[0] == pytest.approx([(k + 1) / batches for k in range(batches)])


class Endless:
    """Batches without a length."""

    def __iter__(self) -> Iterator[Any]:
        yield from loader(False)


def test_a_loader_without_a_length(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    animators = kept(monkeypatch)
    d2l.train_ch6(small_net(), Endless(), Endless(), 2, 0.1)
    assert animators[0].X[0] == pytest.approx([1, 1.2, 1.4, 1.6, 1.8, 2])  # its length is known after an epoch
    assert re.search(LINES, capsys.readouterr().out)


def test_nothing_to_train_on_or_to_evaluate() -> None:
    net = small_net()
    losses = nn.CrossEntropyLoss(reduction="none")
    for call in (
        lambda: d2l.train_ch6(net, [], loader(), 1, 0.1, "cpu"),
        lambda: d2l.train_epoch_ch3(net, [], losses, torch.optim.SGD(net.parameters())),
        lambda: d2l.evaluate_accuracy(net, []),
        lambda: d2l.evaluate_accuracy_gpu(net, iter(())),
        lambda: d2l.evaluate_loss(net, [], losses),
    ):
        with pytest.raises(DataError, match=r"gave no batch.* an iterator can be read only once"):
            call()
    with pytest.raises(ConfigError, match="num_epochs=0"):
        d2l.train_ch6(net, loader(), loader(), 0, 0.1, "cpu")


def test_accuracy_counts_as_a_float() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]])
    count = d2l.accuracy(scores, torch.tensor([0, 2]))
    assert (type(count), count) == (float, 1.0)
    assert d2l.accuracy(scores, torch.tensor([2, 2])) == 2.0
    assert d2l.accuracy(torch.tensor([0, 2, 2]), torch.tensor([0, 1, 2])) == 2.0
    assert d2l.accuracy(torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([1, 1, 1])) == 2.0
    assert d2l.accuracy(torch.zeros(300, 3), torch.zeros(300, dtype=torch.uint8)) == 300.0
    assert d2l.accuracy(torch.randn(2, 3, 4, 5), torch.full((2, 4, 5), 7)) == 0.0


def test_the_modules_mode_and_a_function() -> None:
    net = small_net().train()
    accuracy = d2l.evaluate_accuracy(net, loader())
    assert not net.training
    X, y = samples()
    assert accuracy == right(net, X, y) / N
    assert d2l.evaluate_accuracy_gpu(lambda x: net(x), loader(), d2l.cpu()) == accuracy
    assert d2l.evaluate_accuracy_gpu(lambda x: net(x), loader()) == accuracy
    assert d2l.evaluate_accuracy(nn.Flatten(), [(torch.eye(3), torch.arange(3))]) == 1.0  # no parameters


def test_the_loss_of_a_data_set_is_its_mean_over_all_elements() -> None:
    X, y = samples()
    w, b = torch.randn(36, 1), torch.zeros(1)
    target = y.float()
    data = d2l.load_array((X.flatten(1), target), BATCH)

    def net(X: Tensor) -> Tensor:
        return d2l.linreg(X, w.requires_grad_(), b)

    exact = ((net(X.flatten(1)).flatten() - target) ** 2).mean().item()
    assert d2l.evaluate_loss(net, data, d2l.squared_loss) == pytest.approx(exact / 2, rel=1e-6)
    assert d2l.evaluate_loss(net, data, nn.MSELoss(reduction="none")) == pytest.approx(exact, rel=1e-6)
    # a mean over 16 samples counts 16, one over 6 counts 6
    assert d2l.evaluate_loss(net, data, nn.MSELoss()) == pytest.approx(exact, rel=1e-6)
    assert d2l.evaluate_loss(net, data, F.mse_loss) == pytest.approx(exact, rel=1e-6)
    classifier = small_net().eval()
    exact = F.cross_entropy(classifier(X), y).item()
    assert d2l.evaluate_loss(classifier, loader(), nn.CrossEntropyLoss(reduction="none")) == pytest.approx(exact)


def test_a_loss_that_is_a_mean_already_is_not_divided_twice() -> None:
    ours, theirs = small_net(), small_net()
    torch.manual_seed(2)
    result = d2l.train_epoch_ch3(ours, loader(), nn.CrossEntropyLoss(), torch.optim.SGD(ours.parameters(), lr=0.3))
    torch.manual_seed(2)
    expected = by_hand(theirs, 0.3, 1, "mean")
    assert same(ours, theirs)
    assert result == pytest.approx(tuple(expected[:2]), rel=1e-6)
    X, y = samples()
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="none")):
        net = small_net()
        total, _ = d2l.train_batch_ch13(net, X, y, loss, torch.optim.SGD(net.parameters(), lr=0.0), ["cpu"])
        assert float(total) == pytest.approx(F.cross_entropy(small_net()(X), y, reduction="sum").item(), rel=1e-6)
