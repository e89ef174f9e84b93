"""Programs in the style of the book and of what is taught from it: they use d2l's names as those do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from wholebatch.compat import d2l
from wholebatch.core.errors import DataError

LENET = """
from wholebatch.compat import d2l
import torch
from torch import nn

net = nn.Sequential(
    nn.Conv2d(1, 6, kernel_size=5, padding=2), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2),
    nn.Conv2d(6, 16, kernel_size=5), nn.Sigmoid(), nn.AvgPool2d(kernel_size=2, stride=2), nn.Flatten(),
    nn.Linear(16 * 5 * 5, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10))
torch.set_num_threads(1)
batch_size = 60
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size=batch_size)
lr, num_epochs = 0.9, 2
d2l.train_ch6(net, train_iter, test_iter, num_epochs, lr, d2l.try_gpu())
d2l.plt.savefig("lenet.png")
"""
LAST = r"loss \d\.\d{3}, train acc 0\.\d{3}, test acc 0\.\d{3}\r?\n\d+\.\d examples/sec on cpu\r?\n"

LINEAR = """
w, true_w, true_b = None, torch.tensor([2, -3.4]), 4.2
features, labels = d2l.synthetic_data(true_w, true_b, 1000)
w = torch.normal(0, 0.01, size=(2, 1), requires_grad=True)
b = torch.zeros(1, requires_grad=True)
lr, num_epochs, net, loss = 0.03, 3, d2l.linreg, d2l.squared_loss
for epoch in range(num_epochs):
    for X, y in d2l.load_array((features, labels), 10):
        l = loss(net(X, w, b), y)
        l.sum().backward()
        d2l.sgd([w, b], lr, 10)
with torch.no_grad():
    final = float(loss(net(features, w, b), labels).mean())
error = float((true_w - w.detach().reshape(true_w.shape)).abs().max())
"""

SOFTMAX = """
train_iter, test_iter = d2l.load_data_fashion_mnist(30)
W = torch.normal(0, 0.01, size=(784, 10), requires_grad=True)
b = torch.zeros(10, requires_grad=True)

def softmax(X):
    X_exp = d2l.exp(X)
    return X_exp / d2l.reduce_sum(X_exp, 1, keepdim=True)

def net(X):
    return softmax(d2l.matmul(d2l.reshape(X, (-1, W.shape[0])), W) + b)

def cross_entropy(y_hat, y):
    return -d2l.log(y_hat[range(len(y_hat)), y])

def updater(batch_size):
    return d2l.sgd([W, b], 0.1, batch_size)

before = d2l.evaluate_accuracy(net, test_iter)
d2l.train_ch3(net, train_iter, test_iter, cross_entropy, 5, updater)
after = d2l.evaluate_accuracy(net, test_iter)
d2l.predict_ch3(net, test_iter)
"""

POLYNOMIAL = """
features = torch.randn(200, 1)
poly = features ** torch.arange(4) / torch.tensor([1.0, 1, 2, 6])
labels = poly @ torch.tensor([5, 1.2, -3.4, 5.6]) + 0.1 * torch.randn(200)
loss = nn.MSELoss(reduction='none')
net = nn.Sequential(nn.Linear(4, 1, bias=False))
train_iter = d2l.load_array((poly[:100], labels[:100].reshape(-1, 1)), 10)
test_iter = d2l.load_array((poly[100:], labels[100:].reshape(-1, 1)), 10, is_train=False)
trainer = torch.optim.SGD(net.parameters(), lr=0.04)
animator = d2l.Animator(xlabel='epoch', ylabel='loss', yscale='log', xlim=[1, 60], ylim=[1e-3, 1e2],
                        legend=['train', 'test'])
for epoch in range(60):
    d2l.train_epoch_ch3(net, train_iter, loss, trainer)
    if epoch == 0 or (epoch + 1) % 20 == 0:
        animator.add(epoch + 1, (d2l.evaluate_loss(net, train_iter, loss), d2l.evaluate_loss(net, test_iter, loss)))
weights = net[0].weight.data.numpy().round(1).tolist()
"""

SCHEDULED = """
from torch.optim import lr_scheduler
train_iter, test_iter = d2l.load_data_fashion_mnist(batch_size=30)
loss, device, num_epochs, rates = nn.CrossEntropyLoss(), d2l.try_gpu(), 4, []

def train(net, train_iter, test_iter, num_epochs, loss, trainer, device, scheduler=None):
    net.to(device)
    animator = d2l.Animator(xlabel='epoch', xlim=[0, num_epochs], legend=['train loss', 'train acc', 'test acc'])
    for epoch in range(num_epochs):
        metric = d2l.Accumulator(3)
        for i, (X, y) in enumerate(train_iter):
            net.train()
            trainer.zero_grad()
            X, y = X.to(device), y.to(device)
            y_hat = net(X)
            l = loss(y_hat, y)
            l.backward()
            trainer.step()
            with torch.no_grad():
                metric.add(l * X.shape[0], d2l.accuracy(y_hat, y), X.shape[0])
            train_loss, train_acc = metric[0] / metric[2], metric[1] / metric[2]
            if (i + 1) % 4 == 0:
                animator.add(epoch + i / len(train_iter), (train_loss, train_acc, None))
        test_acc = d2l.evaluate_accuracy_gpu(net, test_iter)
        animator.add(epoch + 1, (None, None, test_acc))
        if scheduler:
            if scheduler.__module__ == lr_scheduler.__name__:
                scheduler.step()
            else:
                for param_group in trainer.param_groups:
                    param_group['lr'] = scheduler(epoch)
                    rates.append(param_group['lr'])
    print(f'train loss {train_loss:.3f}, train acc {train_acc:.3f}, test acc {test_acc:.3f}')
    return train_acc, test_acc

accuracies = []
for make in (lambda: d2l.CosineScheduler(4, warmup_steps=1, base_lr=0.3, final_lr=0.01),
             lambda: d2l.SquareRootScheduler(lr=0.1), lambda: d2l.FactorScheduler(0.9, 1e-2, 0.3)):
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    d2l.plot(torch.arange(4), [make()(t) for t in range(4)])
    trainer = torch.optim.SGD(net.parameters(), lr=0.3)
    accuracies.append(train(net, train_iter, test_iter, num_epochs, loss, trainer, device, make()))
"""

SEVERAL = """
W = [torch.randn(784, 10) * 0.01, torch.zeros(10)]
loss = nn.CrossEntropyLoss(reduction='none')

def model(X, params):
    return X.flatten(1) @ params[0] + params[1]

def get_params(params, device):
    new_params = [p.clone().to(device) for p in params]
    for p in new_params:
        p.requires_grad_()
    return new_params

def allreduce(data):
    for i in range(1, len(data)):
        data[0][:] += data[i].to(data[0].device)
    for i in range(1, len(data)):
        data[i][:] = data[0].to(data[i].device)

def train_batch(X, y, device_params, devices, lr):
    X_shards, y_shards = d2l.split_batch(X, y, devices)
    ls = [loss(model(a, p), c).sum() for a, c, p in zip(X_shards, y_shards, device_params)]
    for l in ls:
        l.backward()
    with torch.no_grad():
        for i in range(len(device_params[0])):
            allreduce([device_params[c][i].grad for c in range(len(devices))])
    for param in device_params:
        d2l.sgd(param, lr, X.shape[0])

def train(devices):
    torch.manual_seed(1)
    train_iter, test_iter = d2l.load_data_fashion_mnist(50)
    device_params = [get_params(W, d) for d in devices]
    animator, timer = d2l.Animator('epoch', 'test acc', xlim=[1, 2]), d2l.Timer()
    for epoch in range(2):
        timer.start()
        for X, y in train_iter:
            train_batch(X, y, device_params, devices, 0.2)
        timer.stop()
        animator.add(epoch + 1, (d2l.evaluate_accuracy_gpu(
            lambda x: model(x, device_params[0]), test_iter, devices[0]),))
    print(f'test acc: {animator.Y[0][-1]:.2f}, {timer.avg():.1f} sec/epoch on {str(devices)}')
    return device_params

one, two = train([d2l.try_gpu(0)]), train([d2l.cpu(), d2l.cpu()])
"""


def run(source: str) -> dict[str, Any]:
    """The names of a program after it ran, with the book's imports before it."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "snippet"}
    header = "from wholebatch.compat import d2l\nimport torch\nfrom torch import nn\n"
    exec(compile(header + source, "snippet", "exec"), names)
    return names


def test_linear_regression_from_scratch() -> None:
    names = run(LINEAR)
    assert names["final"] < 1e-4
    assert names["error"] < 2e-3


def test_softmax_regression_from_scratch(book: Any) -> None:
    names = run(SOFTMAX)
    assert names["before"] < 0.4
    assert names["after"] > 0.8
    assert len(d2l.plt.gcf().axes) == 6


def test_polynomials() -> None:
    names = run(POLYNOMIAL)
    assert names["weights"] == [pytest.approx([5, 1.2, -3.4, 5.6], abs=0.35)]
    assert names["animator"].Y[0][-1] < 0.03
    assert names["animator"].X[1] == [1, *range(20, 61, 20)]


def test_training_with_schedules(book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(SCHEDULED)
    assert all(trained > 0.35 and tested > 0.35 for trained, tested in names["accuracies"])
    factors = [0.3 * 0.9**k for k in range(1, 5)]
    assert names["rates"][0] == 0
    assert names["rates"][8:] == pytest.approx(factors)
    assert len(re.findall(r"train loss \d\.\d{3}, train acc 0\.\d{3}", capsys.readouterr().out)) == 3


def test_two_devices_give_what_one_gives(book: Any, capsys: pytest.CaptureFixture[str]) -> None:
    names = run(SEVERAL)
    for one, two, other in zip(names["one"][0], *names["two"], strict=True):
        assert (one - two).abs().max() < 1e-6
        assert two.equal(other)
        assert one.abs().max() > 0.01
    assert "on [device(type='cpu'), device(type='cpu')]" in capsys.readouterr().out


FORKS = """
import os, runpy, signal, sys, traceback, warnings
import torch, torch._dynamo  # it takes seconds to load them, so both programs share them
for backend, out, errors in zip(sys.argv[1:3], map(int, sys.argv[3::2]), map(int, sys.argv[4::2])):
    if not os.fork():
        signal.alarm(90)
        os.environ.update({'MPLBACKEND': backend} if backend else {})
        sys.stdout, sys.stderr, sys.path[:0] = open(out, 'w'), open(errors, 'w'), ['']
        warnings.simplefilter('error')
        try:
            runpy.run_path('lenet.py', run_name='__main__')
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush(), os._exit(0)
    os.wait()
"""


def read_all(end: int) -> str:
    """What is left in a pipe or a pseudo-terminal whose other side is closed."""
    said = b""
    try:
        while piece := os.read(end, 4096):
            said += piece
    except OSError:  # Linux's way to say of a terminal that the other side is closed
        pass
    os.close(end)
    return said.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="forks and pseudo-terminals are POSIX's")
def test_lenet_without_a_display_over_a_pipe_and_in_a_terminal(book: Any) -> None:
    """Over the pipe, also where the backend asked for needs a display. Nothing is drawn or loaded for it at import."""
    import pty

    loaded = "import sys; assert not {'matplotlib', 'IPython'} & set(sys.modules); from wholebatch.compat import d2l\n"
    nothing = "assert not {'matplotlib', 'IPython'} & set(sys.modules)\n"
    Path("lenet.py").write_text(loaded + nothing + LENET)
    ends = [os.pipe(), os.pipe(), pty.openpty()]
    pipe, errors, terminal = (theirs for _, theirs in ends)
    program = [sys.executable, "-c", FORKS, "tkagg", "", *map(str, (pipe, errors, terminal, terminal))]
    kept = {name: os.environ[name] for name in os.environ if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(program, timeout=100, env=kept, pass_fds=(pipe, errors, terminal), capture_output=True)
    for theirs in (pipe, errors, terminal):
        os.close(theirs)
    over_pipe, errors_of_pipe, in_terminal = (read_all(ours) for ours, _ in ends)
    assert (done.returncode, done.stderr) == (0, b"")
    assert errors_of_pipe == ""
    assert re.fullmatch("training on cpu\n" + LAST, over_pipe)
    assert re.fullmatch("training on cpu\r\n" + LAST, in_terminal)
    assert Path("lenet.png").read_bytes()[:4] == b"\x89PNG"


def test_lenet_in_a_notebook(book: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbclient and ipykernel are not installed here")
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed here")
    pytest.importorskip("ipykernel", reason="nbclient and ipykernel are not installed here")
    pytest.importorskip("matplotlib_inline", reason="nbclient and ipykernel are not installed here")
    drawing = "animator = d2l.Animator(legend=['a'])\nfor x in range(300):\n    animator.add(x, (x,))\nprint('done')"
    again = "animator.add(300, (0,))\nprint(len(animator.Y[0]))"
    code = ["%matplotlib inline" + LENET, drawing, again, "d2l.plot([1, 2, 3])"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(part) for part in code])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3", shutdown_kernel="immediate").execute()
    text, pictures = [], []
    for cell in notebook.cells:
        text.append("".join(output["text"] for output in cell.outputs if output.output_type == "stream"))
        pictures.append([o.data["image/svg+xml"] for o in cell.outputs if "image/svg+xml" in o.get("data", {})])
    assert re.fullmatch("training on cpu\n" + LAST, text[0])
    assert text[1:] == ["done\n", "301\n", ""]
    assert [len(shown) for shown in pictures] == [1, 1, 1, 1]  # one picture a cell, however often it was drawn
    assert "<!-- 300 -->" in pictures[1][0]  # the last points, added between two drawings, are in it


def test_without_the_files_the_message_says_where_they_were_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wholebatch.data.idx.DEBIAN_FASHION_MNIST", tmp_path / "none")
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        run("d2l.load_data_fashion_mnist(256)")
