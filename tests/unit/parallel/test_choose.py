"""What ``parallel=`` may say, on one process; several are in tests/distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import wholebatch as wb
from wholebatch.config import load
from wholebatch.parallel import choose
from wholebatch.parallel.replicate import DdpEngine
from wholebatch.step.engine import Flat


@pytest.mark.parametrize(
    "parallel", [None, "auto", "flat", "ddp", {}, {"data": 1}, {"data": "auto", "engine": "ddp"}, {"engine": None}]
)
def test_one_process_sums_nothing(parallel: Any) -> None:
    made = wb.parallel.engine(parallel)
    assert isinstance(made, Flat)
    assert made.processes.size == 1


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ("dpp", "did you mean 'ddp'"),
        ({"engine": 3}, "engine=3; expected one of auto, flat, ddp"),
        ({"dat": 2}, "no key 'dat'; did you mean 'data'"),
        ({"shard": 2}, "shard=2 make 2, but the number of processes is 1; 1 process would fit data=1; or start 2 of"),
        ({"reshard": "layer"}, "reshard='layer' says nothing without shard="),
        ({"plan": {"a": "colwise"}}, "says nothing without tensor="),
        ({"tensor": 1.5}, "tensor=1.5; expected the number of processes along it"),
        ({"data": 0}, "data=0; expected 'auto', or the number of processes"),
        ({"data": True}, "data=True; expected 'auto'"),
        ({"data": 3}, "start 3 of them (wholebatch train --processes 3"),
        (2, "parallel=2; expected 'auto', 'flat', 'ddp', or a mapping"),
    ],
)
def test_anything_else_is_refused_with_the_repair(parallel: Any, words: str) -> None:
    with pytest.raises(wb.ConfigError) as caught:
        wb.parallel.engine(parallel)
    assert words in str(caught.value)
    with pytest.raises(wb.ConfigError):
        wb.train(
            nn.Linear(2, 2),
            (torch.ones(4, 2), torch.zeros(4, dtype=torch.int64)),
            loss=nn.CrossEntropyLoss(),
            optimizer=torch.optim.SGD,
            epochs=1,
            parallel=parallel,
            display=False,
        )


class Two:
    """Stands for two processes where nothing is sent."""

    rank, size, group = 0, 2, None


def test_the_engine_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose.processes, "everyone", lambda group=None: Two())
    assert isinstance(wb.parallel.engine("ddp"), DdpEngine)
    assert isinstance(wb.parallel.engine({"data": 2, "engine": "ddp"}), DdpEngine)
    assert isinstance(wb.parallel.engine("flat"), Flat)
    assert isinstance(wb.parallel.engine("auto", nn.Linear(2, 2)), Flat)
    assert isinstance(wb.parallel.engine("auto", nn.Linear(2, 2, device="meta")), DdpEngine)
    assert isinstance(wb.parallel.engine("auto", nn.EmbeddingBag(2, 2, sparse=True, device="meta")), Flat)


def test_group_and_engine_are_not_both_taken() -> None:
    with pytest.raises(wb.ConfigError, match="an engine has its group"):
        wb.GradientAccumulator(nn.Linear(2, 2), object(), wb.parallel.engine())


def test_the_configuration() -> None:
    assert load(overrides=["parallel.engine=ddp"]).parallel.engine == "ddp"
    assert load(overrides=["parallel.data=2"]).parallel.data == 2
    for wrong, words in [
        ("parallel.engine=dpp", "did you mean 'ddp'"),
        ("parallel.data=0", "parallel.data=0: expected auto"),
        ("parallel.data=many", "parallel.data=many: expected auto"),
        ("parallel.shard=0", "parallel.shard=0: expected a whole number from 1"),
        ("parallel.reshard=never", "parallel.reshard=never: expected null, step or layer"),
        ("parallel.plan=3", "parallel.plan=3: expected null, or {layer: way}"),
        ("parallel=ddp", "parallel=ddp: expected a mapping"),
    ]:
        with pytest.raises(wb.ConfigError) as caught:
            load(overrides=[wrong])
        assert words in str(caught.value)


@pytest.mark.parametrize("key", ["shard", "tensor", "pipeline", "workers"])
def test_bitwise_mode_of_a_model_in_parts_is_refused_before_it_is_split(key: str) -> None:
    choose.refuse_bitwise("flat")
    choose.refuse_bitwise({key: 1})
    with pytest.raises(wb.ConfigError, match=f"bitwise=True with parallel: {key}=2 is not available"):
        choose.refuse_bitwise({key: 2})
