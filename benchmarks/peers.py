"""What other libraries make of one optimizer step: ``python -m benchmarks.peers``.

A float64 MLP, plain SGD, micro-batches of 4, accumulation over 4. Each row is a library's own loop; its update is
compared with that of the mean over all samples that count: the largest error over the largest exact element. Libraries
that are not installed are named. The second table is measured by two processes, which torchrun starts over gloo, each
library spreading the samples in its own way.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

import wholebatch as wb

K, SIZE, LR = 4, 4, 0.1
Window = list[tuple[Tensor, Tensor]]
Loop = Callable[[nn.Module, Window], Any]
SharedLoop = Callable[[nn.Module, Tensor, Tensor], Any]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def samples(count: int, valid: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and labels; of each micro-batch the first ``valid`` labels count."""
    torch.manual_seed(1)
    x, y = torch.randn(count, 8, dtype=torch.float64), torch.randint(0, 3, (count,))
    for place, kept in enumerate(valid or []):
        y[place * SIZE + kept : (place + 1) * SIZE] = -100
    return x, y


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def error(model: nn.Module, before: Tensor, x: Tensor, y: Tensor) -> float | None:
    """The largest error of the update, over the largest exact element; None where there was no update."""
    update, fresh = vector(model) - before, net()
    if not update.any():
        return None
    F.cross_entropy(fresh(x), y).backward()
    exact = -LR * torch.cat([p.grad.flatten() for p in fresh.parameters() if p.grad is not None])
    return float((update - exact).abs().max() / exact.abs().max())


# one process ------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, window: Window) -> None:
    optimizer = SGD(model.parameters(), lr=LR)
    for number, (x, y) in enumerate(window, 1):
        (F.cross_entropy(model(x), y) / K).backward()
        if number % K == 0:
            optimizer.step()
            optimizer.zero_grad()


def accelerate(model: nn.Module, window: Window | DataLoader[Any]) -> None:
    from accelerate import Accelerator

    engine = Accelerator(gradient_accumulation_steps=K, cpu=True)
    loader = window if isinstance(window, DataLoader) else DataLoader(window, batch_size=None)
    model, optimizer, loader = engine.prepare(model, SGD(model.parameters(), lr=LR), loader)
    for x, y in loader:
        with engine.accumulate(model):
            engine.backward(F.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()


def lightning(model: nn.Module, window: Window | DataLoader[Any], devices: int = 1) -> None:
    import lightning as library

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def training_step(self, batch: Any, number: int) -> Tensor:
            return F.cross_entropy(self.inner(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return SGD(self.inner.parameters(), lr=LR)

    options: dict[str, Any] = {"strategy": "ddp"} if devices > 1 else {}
    trainer = library.Trainer(
        accumulate_grad_batches=K, max_epochs=1, accelerator="cpu", devices=devices, barebones=True, **options
    )
    trainer.fit(Module(), window if isinstance(window, DataLoader) else DataLoader(window, batch_size=None))


def ignite(model: nn.Module, window: Window) -> None:
    from ignite.engine import create_supervised_trainer

    optimizer = SGD(model.parameters(), lr=LR)
    trainer = create_supervised_trainer(model, optimizer, F.cross_entropy, gradient_accumulation_steps=K)
    trainer.run(window, max_epochs=1)


def fabric(model: nn.Module, window: Window) -> None:
    from lightning.fabric import Fabric

    engine = Fabric(accelerator="cpu", devices=1)
    model, optimizer = engine.setup(model, SGD(model.parameters(), lr=LR))
    for number, (x, y) in enumerate(window, 1):
        accumulating = number < len(window)
        with engine.no_backward_sync(model, enabled=accumulating):
            engine.backward(F.cross_entropy(model(x), y))
        if not accumulating:
            optimizer.step()
            optimizer.zero_grad()


class Plain(nn.Module):
    """A model that computes its loss."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the mean loss."""
        return {"loss": F.cross_entropy(self.inner(x), labels)}


class Ignoring(Plain):
    """One whose head takes ``num_items_in_batch`` and ignores it."""

    def forward(self, x: Tensor, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        """Return the mean loss."""
        return super().forward(x, labels)


class Counting(Plain):
    """One whose head divides by ``num_items_in_batch``."""

    def forward(self, x: Tensor, labels: Tensor, num_items_in_batch: Any = None, **kwargs: Any) -> dict[str, Tensor]:
        """Return the sum of the losses over ``num_items_in_batch``."""
        if num_items_in_batch is None:
            return super().forward(x, labels)
        return {"loss": F.cross_entropy(self.inner(x), labels, reduction="sum") / num_items_in_batch}


def trainer(kind: type[Plain]) -> Loop:
    """The loop of transformers' Trainer over a model of a kind."""

    def loop(model: nn.Module, window: Any) -> None:
        from transformers import Trainer, TrainingArguments
        from transformers.trainer_callback import PrinterCallback

        class AsGiven(Trainer):  # type: ignore[misc]
            def get_train_dataloader(self) -> Any:
                return self.accelerator.prepare(self.train_dataset)

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, gradient_accumulation_steps=K, num_train_epochs=1, optim="sgd", max_grad_norm=0,
                lr_scheduler_type="constant", learning_rate=LR, report_to=[], save_strategy="no",
                logging_strategy="no", disable_tqdm=True, use_cpu=True,
            )  # fmt: skip
            loader = window if isinstance(window, DataLoader) else DataLoader(_named(window), batch_size=None)
            made = AsGiven(kind(model), arguments, train_dataset=loader)
            made.remove_callback(PrinterCallback)
            made.train()

    return loop


def _named(window: Window) -> Any:
    return [{"x": x, "labels": y} for x, y in window]


def ours(model: nn.Module, window: Window) -> None:
    wb.Step(model, SGD(model.parameters(), lr=LR), nn.CrossEntropyLoss())(wb.MicroBatches(window))


ONE: list[tuple[str, str, Loop]] = [
    ("by hand, `loss / k`", "torch", by_hand),
    ("Accelerate `accumulate()`", "accelerate", accelerate),
    ("Lightning", "lightning", lightning),
    ("ignite", "ignite", ignite),
    ("Fabric, its documentation's loop", "lightning", fabric),
    ("Trainer of transformers, plain model", "transformers", trainer(Plain)),
    ("Trainer, head that ignores `num_items_in_batch`", "transformers", trainer(Ignoring)),
    ("wholebatch", "torch", ours),
]
COLUMNS: dict[str, tuple[int, list[int] | None]] = {
    "equal": (16, None),
    "last micro-batch has 1 sample": (13, None),
    "last window has 2 of 4": (8, None),
    "valid tokens 4, 3, 2, 1": (16, [4, 3, 2, 1]),
    "one micro-batch all ignored": (16, [4, 4, 0, 4]),
}


def one_process() -> list[list[str]]:
    """The rows of the first table."""
    rows = []
    for name, package, loop in ONE:
        if importlib.util.find_spec(package) is None:
            rows.append([name, f"{package} is not installed", *[""] * (len(COLUMNS) - 1)])
            continue
        cells = []
        for count, valid in COLUMNS.values():
            x, y = samples(count, valid)
            model = net()
            before = vector(model)
            with quiet():
                loop(model, list(zip(x.split(SIZE), y.split(SIZE), strict=True)))
            cells.append(shown(error(model, before, x, y)))
        rows.append([name, *cells])
    return rows


# two processes ------------------------------------------------------------------------------------------


def shared_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """DistributedDataParallel; every process takes each second micro-batch."""
    rank = distributed.get_rank()
    pieces = list(zip(x.split(SIZE), y.split(SIZE), strict=True))[rank::2]
    engine, optimizer = DistributedDataParallel(model), SGD(model.parameters(), lr=LR)
    for number, (a, b) in enumerate(pieces, 1):
        last = number == len(pieces)
        with contextlib.nullcontext() if last else engine.no_sync():
            (F.cross_entropy(engine(a), b) / K).backward()
    if len(pieces) == K:
        optimizer.step()


def shared_ours(model: nn.Module, x: Tensor, y: Tensor) -> None:
    rank = distributed.get_rank()
    pieces = list(zip(x.split(SIZE), y.split(SIZE), strict=True))[rank::2]
    step = wb.Step(model, SGD(model.parameters(), lr=LR), nn.CrossEntropyLoss())
    step(wb.MicroBatches(pieces))


def shared_trainer(model: nn.Module, x: Tensor, y: Tensor) -> None:
    trainer(Counting)(model, DataLoader(_named(list(zip(x, y, strict=True))), batch_size=SIZE))


def loader_of(x: Tensor, y: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=SIZE)


TWO: list[tuple[str, str, SharedLoop]] = [
    ("by hand, DistributedDataParallel, `loss / k`", "torch", shared_by_hand),
    ("Accelerate `accumulate()`", "accelerate", lambda model, x, y: accelerate(model, loader_of(x, y))),
    ("Trainer of transformers, with `num_items_in_batch`", "transformers", shared_trainer),
    ("Lightning", "lightning", lambda model, x, y: lightning(model, loader_of(x, y), devices=2)),
    ("wholebatch", "torch", shared_ours),
]
SHARED: dict[str, tuple[int, list[int] | None]] = {
    "equal": (32, None),
    "uneven ignored": (32, [4, 1, 4, 1, 3, 1, 4, 2]),
    "29 samples": (29, None),
    "21 samples": (21, None),
}


def of_one_rank() -> None:
    """Measure as one of two processes; the first prints the rows as JSON."""
    wb.parallel.init()
    rows = []
    for name, package, loop in TWO:
        if importlib.util.find_spec(package) is None:
            rows.append([name, f"{package} is not installed", *[""] * (len(SHARED) - 1)])
            continue
        cells = []
        for count, valid in SHARED.values():
            x, y = samples(count, valid)
            model = net()
            before = vector(model)
            try:
                with quiet():
                    loop(model, x, y)
                cells.append(shown(error(model, before, x, y)))
            except RuntimeError as failure:
                cells.append(f"fails: {str(failure).splitlines()[0][:40]}")
        rows.append([name, *cells])
    if distributed.get_rank() == 0:
        print("ROWS" + json.dumps(rows), flush=True)


def two_processes() -> list[list[str]]:
    """The rows of the second table, measured by torchrun's processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "-m", "benchmarks.peers", "--rank"], capture_output=True, text=True, env=environment, timeout=600
    )
    for line in done.stdout.splitlines():
        if line.startswith("ROWS"):
            rows: list[list[str]] = json.loads(line.removeprefix("ROWS"))
            return rows
    raise SystemExit(f"the two processes failed:\n{done.stderr[-3000:]}")


# tables -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def quiet() -> Any:
    """What the libraries print and warn of is left out."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def shown(value: float | None) -> str:
    return "left out" if value is None else f"{value:.2f}" if value > 5e-3 else f"{value:.0e}"


def table(first: str, columns: list[str], rows: list[list[str]]) -> str:
    head = [f"| {first} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)])


def versions() -> str:
    names = ("torch", "accelerate", "lightning", "transformers", "pytorch-ignite")
    found = []
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name).partition('+')[0]}")
    return f"{date.today():%B %Y}, {', '.join(found)}"


def main() -> None:
    """Print both tables."""
    if "--rank" in sys.argv:
        of_one_rank()
        return
    torch.set_num_threads(1)
    print(versions(), end="\n\n")
    print(table("one process", list(COLUMNS), one_process()), end="\n\n", flush=True)
    print(table("two processes", list(SHARED), two_processes()))


if __name__ == "__main__":
    main()
