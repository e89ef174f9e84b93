"""The contrastive model and loss, against the formula written out, and in a recipe in small micro-batches."""

import io
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from wholebatch import Step, WholeBatchLoss, runs
from wholebatch.config import load
from wholebatch.data import digits
from wholebatch.models import Contrastive, SupervisedContrastive, encode


def written_out(z, classes, temperature):
    terms = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and classes[p] == classes[i]]
        if positives:
            whole = sum((z[i] @ z[a] / temperature).exp() for a in range(len(z)) if a != i)
            terms.append(-sum(((z[i] @ z[p] / temperature).exp() / whole).log() for p in positives) / len(positives))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_the_loss_is_the_formula(temperature):
    torch.manual_seed(0)
    z = F.normalize(torch.randn(11, 5, dtype=torch.float64), dim=1).requires_grad_()
    classes = torch.tensor([0, 1, 2, 0, 1, 0, 3, 2, 2, 0, 1])  # 3 is alone
    logits = torch.randn(11, 4, dtype=torch.float64)
    ours = SupervisedContrastive(temperature)(z, logits, classes) - F.cross_entropy(logits, classes)
    expected = written_out(z, classes, temperature)
    assert float((ours - expected).detach().abs()) < 1e-13
    (a,), (b,) = torch.autograd.grad(ours, z), torch.autograd.grad(expected, z)
    assert float((a - b).norm() / b.norm()) < 1e-13


def test_nobody_has_a_partner():
    z = F.normalize(torch.randn(3, 5), dim=1).requires_grad_()
    loss = SupervisedContrastive()(z, torch.zeros(3, 3), torch.arange(3))
    (gradient,) = torch.autograd.grad(loss, z)
    assert gradient.eq(0).all()


def test_the_probe_has_no_part_in_the_features():
    model = Contrastive()
    _, logits, classes = encode(model, (torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])))
    F.cross_entropy(logits, classes).backward()
    assert model.probe.weight.grad.norm() > 0
    assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_the_whole_training_part_in_small_micro_batches():
    """Dropout included: the gradient is that of one micro-batch of 1,437."""
    data = digits("train")
    images, classes = (torch.as_tensor(array) for array in (data.tensors if hasattr(data, "tensors") else data[:]))
    batch = images.double().reshape(-1, 1, 8, 8), classes
    seen, gradients = [], []
    for micro_batch in (1437, 64, 500):
        torch.manual_seed(0)
        model = Contrastive(width=4, features=16).double()
        loss = WholeBatchLoss(encode, SupervisedContrastive(), outputs=lambda z, logits, classes: logits)
        step = Step(model, torch.optim.SGD(model.parameters(), lr=0.1), loss, micro_batch=micro_batch)
        shown = []
        step.watch = lambda logits, targets, shown=shown: shown.append((logits, targets))
        report = step(batch)
        assert report.micro_batches == -(-1437 // micro_batch)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        seen.append(torch.cat([logits for logits, _ in shown]))
        assert torch.equal(torch.cat([targets for _, targets in shown]), classes)
    for gradient, logits in zip(gradients[1:], seen[1:], strict=True):
        assert float((gradient - gradients[0]).norm() / gradients[0].norm()) < 1e-12
        assert float((logits - seen[0]).abs().max()) < 1e-12


def test_the_recipe_counts_accuracy_of_every_sample_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load("contrastive", overrides=["epochs=2", "schedule.warmup_steps=1", "run_dir=run"])
    stream = io.StringIO()
    history = runs.train_recipe(settings, stream=stream)
    assert history.last("train")["samples"] == 2 * 1437
    share = history.last("train")["accuracy"] * 1437
    assert share == pytest.approx(round(share), abs=1e-6)
    assert Path("run", "history.jsonl").exists()
    promise = next(line for line in stream.getvalue().splitlines() if "micro-batches of 26 instead of 64" in line)
    assert float(promise.split(" by ")[1].split()[0]) < 1e-5
