"""The last step made once more: honest about what depends on the micro-batch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import wholebatch as wb
from wholebatch.core.cuts import bounds
from wholebatch.data import BatchLoader
from wholebatch.data.order import epoch_order
from wholebatch.loop import LastStep, other_micro_batch


def data(samples=44):
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(samples, 6, generator=generator, dtype=torch.float64),
        torch.randint(3, (samples,), generator=generator),
    )


def run(body, *, samples=44, batch=16, micro=8, other=3, epochs=2, skip_last=False, quiet=True):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), *body, nn.Linear(8, 3)).double()
    x, y = data(samples)
    if skip_last:
        y[epoch_order(samples, 0, epochs - 1)[-(samples % batch or batch) :]] = -100
    loss, last = nn.CrossEntropyLoss(), LastStep(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", wb.PromiseWarning)
        wb.train(
            model,
            (x, y),
            loss=loss,
            optimizer=lambda p: torch.optim.AdamW(p, lr=0.05),
            batch_size=batch,
            micro_batch=micro,
            epochs=epochs,
            observers=[last],
            display=False,
        )
    loader = BatchLoader((x, y), batch)
    steps = -(-samples // batch)
    loader.load_state_dict({**loader.state_dict(), "epoch": epochs - 1, "consumed": (steps - 1) * batch})
    return last.difference(loader, loss, other, quiet=quiet, seed=0)


@pytest.mark.parametrize("body", [[nn.Tanh()], [nn.Dropout(0.5)]])
@pytest.mark.parametrize(("samples", "epochs"), [(48, 2), (44, 3), (16, 1), (12, 1)])
@pytest.mark.parametrize("micro", ["auto", 5])
def test_an_exact_model_differs_by_rounding(body, samples, epochs, micro):
    found = run(body, samples=samples, epochs=epochs, micro=micro)
    assert 0 < found < 1e-14  # not 0: it was cut otherwise


def test_batch_norm_differs_much():
    assert run([nn.BatchNorm1d(8)]) > 0.01


def test_a_model_in_whole_batches_says_why_it_depends_on_the_micro_batch():
    with pytest.warns(wb.PromiseWarning, match="BatchNorm|batch norm"):
        assert run([nn.BatchNorm1d(8)], micro="auto", quiet=False) > 0.01


def test_a_model_that_draws_by_itself_differs_much():
    class Rand(nn.Module):
        def forward(self, x):
            return x * torch.rand_like(x)

    assert run([Rand()]) > 0.01


def test_another_step_than_the_last_one_would_be_noticed():
    """The weights before the last step are those that count."""
    torch.manual_seed(1)
    model = nn.Linear(6, 3).double()
    last, loss = LastStep(model), nn.CrossEntropyLoss()
    options = {"loss": loss, "batch_size": 16, "epochs": 2, "display": False, "observers": [last]}
    wb.train(model, data(48), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), **options)
    loader = BatchLoader(data(48), 16)
    for place, same in (((1, 32), True), ((1, 16), False), ((0, 32), False)):
        loader.load_state_dict({**loader.state_dict(), "epoch": place[0], "consumed": place[1]})
        assert (last.difference(loader, loss, 5, quiet=True, seed=0) < 1e-12) == same


def test_a_last_step_that_changed_nothing_has_no_difference():
    assert run([nn.Tanh()], skip_last=True) is None


def test_gradients_stay_with_the_model_while_it_is_copied():
    model = nn.Linear(2, 2)
    model.weight.grad = gradient = torch.ones(2, 2)
    last = LastStep(model)
    last._steps = 3
    last._keep(made=2)
    assert model.weight.grad is gradient
    assert model.bias.grad is None
    assert last._before.weight.grad is None


@pytest.mark.parametrize("samples", range(1, 40))
@pytest.mark.parametrize("micro", [1, 2, 3, 8, 31, 100])
def test_the_other_micro_batch_cuts_otherwise(samples, micro):
    other = other_micro_batch(samples, micro)
    if samples == 1:
        assert other is None
    else:
        assert bounds(samples, other) != bounds(samples, micro)
