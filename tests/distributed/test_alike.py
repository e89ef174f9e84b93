"""What differs between processes is found before the first step, and every process says the same line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import resuming
import torch
from torch import nn

import wholebatch as wb


def sgd(**more: Any) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, **{"lr": 0.2, "momentum": 0.9, **more})


def reversed_groups(parameters: Any) -> Any:
    return torch.optim.SGD(list(parameters)[::-1], lr=0.2, momentum=0.9)


def images(samples: int, bias: float = 0.0) -> Any:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(samples, 1, 6, 6, dtype=torch.float64, generator=generator) + bias, torch.arange(samples) % 3


def other_model(kind: str) -> nn.Module:
    model = resuming.model()
    if kind == "dtype":
        return model.float()
    if kind == "frozen":
        model[1].bias.requires_grad_(False)
    if kind == "layer":
        model[3] = nn.Dropout(0.5)
    if kind == "wider":
        model[1], model[4] = nn.Linear(36, 13).double(), nn.Linear(13, 3).double()
    return model


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "batch size": ({"batch_size": 8}, "training data batch_size is 8 in process 2 and 7 in process 0"),
    "epochs": ({"epochs": 5}, "epochs is 5 in process 2 and 4 in process 0"),
    "seed": ({"seed": 12}, "seed is 12 in process 2 and 11 in process 0"),
    "optimizer": ({"optimizer": lambda p: torch.optim.Adam(p, lr=0.2)}, "optimizer kind is 'Adam' in process 2"),
    "rate": ({"optimizer": sgd(lr=0.1), "schedule": None}, "optimizer group 0 lr is 0.1 in process 2"),
    "momentum": ({"optimizer": sgd(momentum=0.8)}, "optimizer group 0 momentum is 0.8 in process 2 and 0.9"),
    "order of parameters": ({"optimizer": reversed_groups}, "parameters of the optimizer is .* in process 2"),
    "schedule": ({"schedule": wb.CosineScheduler(30, base_lr=0.2, warmup_steps=3)}, "schedule is .*max_update=30"),
    "schedule's unit": ({"schedule_unit": "epoch"}, "schedule_unit is 'epoch' in process 2 and 'step' in process 0"),
    "loss": ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing is 0.1 in process 2"),
    "precision": ({"precision": "bf16"}, "precision is 'bf16' in process 2 and 'fp32' in process 0"),
    "clipping": ({"clip_norm": 1.0}, "clip_norm is 1.0 in process 2 and None in process 0"),
    "length": ({"data": images(37), "batch_size": 7}, "training data length is 37 in process 2 and 38 in process 0"),
    "samples": ({"data": images(38, 1.0), "batch_size": 7}, "data digest is [0-9]+ in process 2"),
    "test data": ({"eval_data": images(9)}, "evaluation data length is 9 in process 2 and 10 in process 0"),
    "no test data": ({"eval_data": None}, "evaluation data length is 0 in process 2 and 10 in process 0"),
    "run folder": ({"run_dir": None}, "run_dir is False in process 2 and True in process 0"),
    "records": ({"log_every": 4}, "log_every is 4 in process 2 and 3 in process 0"),
    "a layer": ({"model": "layer"}, r"layers 3 is 'p=0.5, inplace=False' in process 2"),
    "frozen": ({"model": "frozen"}, "trained parameters is .* in process 2"),
    "dtype": ({"model": "dtype"}, "process 0 has 1.weight float64.* where process 2 has 1.weight float32"),
    "shape": ({"model": "wider"}, r"process 0 has 1.weight float64\(12, 36\) where process 2"),
}


def started(rank: int, size: int, folder: str, base: dict[str, Any]) -> dict[str, str]:
    """Every case in turn: rank 2 differs. What was raised."""
    said = {}
    for name, (options, _) in CASES.items():
        given = {**base, "run_dir": f"{folder}/{name}", **(options if rank == 2 else {})}
        made = other_model(given.pop("model", ""))
        try:
            resuming.train(given.pop("run_dir"), made, **given)
        except Exception as caught:
            said[name] = f"{type(caught).__name__}: {caught}"
    return said


def test_what_differs_is_named_in_every_process(world: Any, tmp_path: Path) -> None:
    first, *others = world(3, started, str(tmp_path), {})
    assert set(first) == set(CASES)
    for name, (_, pattern) in CASES.items():
        assert first[name].startswith("InputError: the processes"), name
        assert re.search(pattern, first[name]), first[name]
        assert [other[name] for other in others] == [first[name]] * 2, name
    assert list(tmp_path.glob("*/*.*")) == []  # no run was begun


def micro(rank: int, size: int) -> Any:
    return resuming.train(None, micro_batch=[2, 5, "auto"][rank])


def test_the_micro_batch_may_differ(world: Any) -> None:
    weights, records = resuming.train(None)
    for other, theirs in world(3, micro):
        assert resuming.error(other, weights) < 1e-12
        assert resuming.same_records(theirs, records)
