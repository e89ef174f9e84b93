"""``wb.verify``: our step over micro-batches and ranks, and what it names where the promise is broken."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.step.passes import Passes

LOSS = nn.CrossEntropyLoss()


def batch(samples: int = 13) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(samples, 8), torch.randint(0, 3, (samples,))


def net(*inner: nn.Module) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(8, 16), *inner, nn.Tanh(), nn.Linear(16, 3))


def verify(model: nn.Module, loss: Any = LOSS, data: Any = None, **options: Any) -> wb.StepCheck:
    return wb.verify(model, loss, batch() if data is None else data, show=False, **options)


def meanings(check: wb.StepCheck) -> set[str]:
    return {case.meaning for case in check.cases if not case.ok}


def unreduced(model: nn.Module, given: Any) -> Tensor:
    return F.cross_entropy(model(given[0]), given[1], reduction="none")


@pytest.mark.parametrize(
    "loss",
    [LOSS, nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1), unreduced,
     nn.CrossEntropyLoss(reduction="sum")],
)  # fmt: skip
def test_our_step_is_right_with_dropout(loss: Any) -> None:
    model, data = net(nn.Dropout(0.5)), batch()
    data[1][:5] = -100
    check = verify(model, loss, data)
    assert check.ok
    assert check.error < 1e-14
    names = [case.name for case in check.cases]
    assert names == [
        "at once, against torch's backward", "micro-batches of 1", "micro-batches of 5", "micro-batches of 12",
        "2 processes (in turn)", "3 processes (in turn)",
    ]  # fmt: skip
    assert "float64" in str(check)


def test_everything_is_left_as_it_was() -> None:
    model, data = net(nn.BatchNorm1d(16), nn.Dropout(0.5)), batch()
    before, kept, state = copy.deepcopy(model.state_dict()), copy.deepcopy(data), torch.get_rng_state()
    filters = list(warnings.filters)
    verify(model, data=data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(data, kept, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.dtype is torch.float32 for p in model.parameters())
    assert warnings.filters == filters


def test_batch_norm_is_named() -> None:
    check = verify(net(nn.BatchNorm1d(16)), micro_batches=[5])
    assert [case.ok for case in check.cases] == [True, False, False, False]
    assert all("batch norm in training mode" in text and "1 normalise" in text for text in meanings(check))
    assert verify(net(nn.BatchNorm1d(16)).eval()).ok


def test_a_micro_batch_that_batch_norm_refuses_is_wrong_too() -> None:
    case = verify(net(nn.BatchNorm1d(16)), micro_batches=[1], processes=[]).cases[-1]
    assert not case.ok
    assert "1 (BatchNorm1d)" in case.meaning
    assert "Expected more than 1 value per channel" in case.meaning


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def test_a_draw_without_a_key_is_named() -> None:
    check = verify(net(Noise()))
    assert len(meanings(check)) == 1
    assert "1 (Noise) drew random numbers" in meanings(check).pop()


def test_a_layer_of_ones_own_that_mixes_samples_is_named() -> None:
    check = verify(net(nn.Identity(), Centred()))
    assert [case.ok for case in check.cases] == [True] + [False] * 5
    assert all("2 (Centred) makes a sample's output depend" in text for text in meanings(check))


def bare(model: nn.Module, given: Any) -> Tensor:
    return F.cross_entropy(model(given[0]), given[1])


def one_element(model: nn.Module, given: Any) -> Tensor:
    return F.cross_entropy(model(given[0]), given[1]).reshape(1)


def test_a_mean_reduced_loss_is_named() -> None:
    check = verify(net(), bare)
    assert not check.ok
    assert "the loss bare (test_verify.py" in check.cases[0].meaning
    assert 'reduction="none"' in check.cases[0].meaning
    hidden = verify(net(), one_element)
    assert hidden.cases[0].ok
    assert {text.partition(" (")[0] for text in meanings(hidden)} == {"the loss one_element"}
    assert "mean-reduced: it weighs 1 for 13 samples and for 6 alike" in meanings(hidden).pop()


def test_a_loss_that_mixes_samples_is_named() -> None:
    def contrastive(model: nn.Module, given: Any) -> Tensor:
        outputs = model(given[0])
        return (outputs @ outputs.T).logsumexp(1)

    assert meanings(verify(net(), contrastive)) == {"the loss makes samples depend on each other (no layer does)"}


class Unstable(torch.utils.data.Dataset[Any]):
    """Item 7 differs each time, by no generator that a loader could seed."""

    def __init__(self) -> None:
        self.x, self.y = batch(20)
        self.reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        return self.x[index] + (self.reads if index == 7 else 0), self.y[index]


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: torch.utils.data.DataLoader(d, 10, shuffle=True),
                                  lambda d: wb.data.BatchLoader(d, 20)])  # fmt: skip
def test_an_unstable_data_set_is_named(wrap: Any) -> None:
    check = verify(net(), data=wrap(Unstable()), micro_batches=[4], processes=[])
    assert not check.ok
    assert not check.cases[0].ok
    assert "Unstable is unstable: item 7 differs when it is read twice (batch[0])" in check.cases[0].meaning
    assert all(case.ok for case in check.cases[1:])


def test_a_stable_data_set_is_read_and_left_at_its_place() -> None:
    loader = wb.data.BatchLoader(wb.data.digits("train"), 20)
    next(iter(loader))
    place = loader.state_dict()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    check = verify(model, data=loader)
    assert check.ok
    assert check.cases[0].error == 0
    assert loader.state_dict() == place


def test_a_model_that_insists_on_float32() -> None:
    class Insists(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    check = verify(Insists(8, 3))
    assert check.ok
    assert 0 < check.error < 1e-5
    assert "float32" in str(check)


def test_a_step_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks really share the batch, and the micro-batches really are cut."""
    right = Passes._run

    def forgets(self: Any, piece: Any, start: int, *rest: Any) -> None:
        if start:
            right(self, piece, start, *rest)

    monkeypatch.setattr(Passes, "_run", forgets)
    check = verify(net(), micro_batches=[5])
    assert not any(case.ok for case in check.cases)


def test_strict_and_the_printed_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert str(wb.verify(net(), LOSS, batch())) + "\n" == capsys.readouterr().out
    with pytest.raises(wb.WrongStepError, match="Centred"):
        verify(net(Centred()), strict=True)
    with pytest.raises(wb.InputTypeError, match=r"give a torch\.nn\.Module"):
        wb.verify("net", LOSS, batch())  # type: ignore[arg-type]


def test_mistakes_of_the_batch_are_the_step_s_own() -> None:
    with pytest.raises(wb.BatchError):
        verify(net(), data=(torch.zeros(3, 8), torch.zeros(4)))
    with pytest.raises(wb.LossError):
        verify(net(), data=(torch.zeros(3, 8), torch.zeros(3, 7)))


def test_the_parts_of_ranks_are_uneven_and_are_cut_as_well() -> None:
    seen: list[int] = []

    def notes(model: nn.Module, given: Any) -> Tensor:
        seen.append(len(given[1]))
        return unreduced(model, given)

    check = verify(net(), notes, micro_batches=[], processes=(1, 3))
    assert [case.name for case in check.cases] == ["at once, against torch's backward", "3 processes (in turn)"]
    assert sorted(seen[-6:]) == [1, 1, 2, 2, 3, 4]  # parts of 7, 3 and 3


def test_more_ranks_than_samples_are_left_out() -> None:
    names = [case.name for case in verify(net(), data=batch(2)).cases]
    assert names[-1] == "2 processes (in turn)"


def test_a_loss_with_weights_of_its_own_is_left_as_it_was() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
    assert verify(net(), loss).ok
    assert loss.weight is not None
    assert loss.weight.dtype is torch.float32


class Root(nn.Module):
    """Draws by function and mixes samples, in its own forward."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.first, self.shift = net(), shift

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.first(F.dropout(x, 0.5, self.training))
        return outputs - self.shift * outputs.mean(0)


def test_dropout_by_function_is_off_where_layers_are_compared() -> None:
    assert verify(Root(0.0)).ok
    assert "the model (Root) makes a sample's output depend" in meanings(verify(Root(1.0))).pop()


def test_an_error_of_a_millionth_is_one() -> None:
    check = verify(Root(1e-6), micro_batches=[5])
    assert 1e-12 < check.error < 1e-4
    assert [case.ok for case in check.cases] == [True, False, False, False]


@pytest.mark.filterwarnings("ignore:something else")
def test_a_warning_about_something_else_is_no_cause() -> None:
    def warns(model: nn.Module, given: Any) -> Tensor:
        warnings.warn("something else", stacklevel=1)
        return unreduced(model, given)

    assert all("Centred" in text for text in meanings(verify(net(Centred()), warns)))
