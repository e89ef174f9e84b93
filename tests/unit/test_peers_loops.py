"""``check_step`` finds the faults of other libraries' own loops, each where it is installed."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

import wholebatch as wb

pytestmark = pytest.mark.filterwarnings("ignore")  # what other packages warn of is their own affair
K = 4
Pairs = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def environment_given_back() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        yield


def needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra: bridges)")


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 3))


def window() -> Pairs:
    torch.manual_seed(2)
    return [(torch.randn(4, 8), torch.randint(0, 3, (4,))) for _ in range(K)]


def wrong(check: wb.StepCheck) -> dict[str, float]:
    """The factor of each case that is wrong, by the beginning of its name."""
    return {case.name.partition(",")[0]: case.factor for case in check.cases if not case.ok}


def compare(take_step: Callable[..., None]) -> wb.StepCheck:
    return wb.check_step(take_step, net(), window(), nn.CrossEntropyLoss(), show=False)


MEAN_OF_MEANS = {"uneven last micro-batch", "another split", "labels masked unevenly", "one micro-batch all masked"}


def test_accelerate() -> None:
    needs("accelerate")
    from accelerate import Accelerator

    def take_step(model: nn.Module, batches: Pairs) -> None:
        engine = Accelerator(gradient_accumulation_steps=K, cpu=True)
        model, optimizer, loader = engine.prepare(
            model, SGD(model.parameters(), lr=0.1), DataLoader(batches, batch_size=None)
        )
        for x, y in loader:
            with engine.accumulate(model):
                engine.backward(F.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()

    found = wrong(compare(take_step))
    assert set(found) == {*MEAN_OF_MEANS, "short window"}
    assert found["short window"] == pytest.approx(0.5)


def test_accelerate_prepared_before() -> None:
    """Engine and optimizer were made beforehand, for the model itself."""
    needs("accelerate")
    from accelerate import Accelerator

    engine = Accelerator(gradient_accumulation_steps=K, cpu=True)
    model = net()
    prepared, optimizer = engine.prepare(model, SGD(model.parameters(), lr=0.1))

    def take_step(_: nn.Module, batches: Pairs) -> None:
        for x, y in batches:
            with engine.accumulate(prepared):
                engine.backward(F.cross_entropy(prepared(x), y))
                optimizer.step()
                optimizer.zero_grad()

    found = wrong(wb.check_step(take_step, model, window(), nn.CrossEntropyLoss(), show=False))
    assert set(found) == {*MEAN_OF_MEANS, "short window"}
    assert found["short window"] == 0  # nothing says where the loader ends: no step is made


def test_lightning() -> None:
    needs("lightning")
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return F.cross_entropy(self.inner(batch[0]), batch[1])

        def configure_optimizers(self) -> SGD:
            return SGD(self.inner.parameters(), lr=0.1)

    def take_step(model: nn.Module, batches: Pairs) -> None:
        trainer = lightning.Trainer(
            accumulate_grad_batches=K, max_epochs=1, accelerator="cpu", devices=1, logger=False, barebones=True
        )
        trainer.fit(Module(model), DataLoader(batches, batch_size=None))

    found = wrong(compare(take_step))
    assert set(found) == {*MEAN_OF_MEANS, "short window"}
    assert found["short window"] == pytest.approx(0.5)


@pytest.mark.parametrize("divided", [False, True], ids=["as documented", "divided"])
def test_fabric(divided: bool) -> None:
    needs("lightning")
    from lightning.fabric import Fabric

    def take_step(model: nn.Module, batches: Pairs) -> None:
        fabric = Fabric(accelerator="cpu", devices=1)
        model, optimizer = fabric.setup(model, SGD(model.parameters(), lr=0.1))
        for number, (x, y) in enumerate(batches, 1):
            accumulating = number < len(batches)
            with fabric.no_backward_sync(model, enabled=accumulating):
                fabric.backward(F.cross_entropy(model(x), y) / (len(batches) if divided else 1))
            if not accumulating:
                optimizer.step()
                optimizer.zero_grad()

    check = compare(take_step)
    found = wrong(check)
    if divided:
        assert set(found) == MEAN_OF_MEANS
    else:
        assert len(found) == len(check.cases)
        assert (check.cases[0].factor, found["short window"]) == (pytest.approx(4), pytest.approx(2))


class Plain(nn.Module):
    """A model with a loss, which the Trainer divides by the number of micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(self.net(x), labels)}


class Ignoring(Plain):
    """A head that takes ``num_items_in_batch`` and ignores it, so that nobody divides."""

    def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return super().forward(x, labels)


class Counting(Plain):
    """A head that divides its sum by ``num_items_in_batch``: right."""

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        if num_items_in_batch is None:
            return super().forward(x, labels)
        return {"loss": F.cross_entropy(self.net(x), labels, reduction="sum") / num_items_in_batch}


def mean_and_count(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return model(**batch)["loss"], (batch["labels"] != -100).sum()


@pytest.mark.parametrize("kind", [Plain, Ignoring, Counting])
def test_hugging_face_trainer(kind: type[Plain], tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    needs("transformers")
    needs("accelerate")
    from transformers import Trainer, TrainingArguments

    class AsGiven(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(DataLoader(self.train_dataset, batch_size=None))

    def take_step(model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
        arguments = TrainingArguments(
            output_dir=str(tmp_path), gradient_accumulation_steps=K, num_train_epochs=1, optim="sgd", max_grad_norm=0,
            lr_scheduler_type="constant", learning_rate=0.1, report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        AsGiven(model, arguments, train_dataset=batches).train()

    batches = [{"x": x, "labels": y} for x, y in window()]
    check = wb.check_step(take_step, kind(), batches, mean_and_count, show=False)
    found = wrong(check)
    if kind is Plain:
        assert set(found) == MEAN_OF_MEANS
    elif kind is Ignoring:
        assert len(found) == len(check.cases)
        assert check.cases[0].factor == pytest.approx(4)
    else:
        assert found == {}
        assert check.error < 1e-12
