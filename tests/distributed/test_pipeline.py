"""A pipeline's step is that of one process on the same samples, dropout included: the oracle is one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pipeline_cases
import pytest
from pipeline_cases import CASES

import wholebatch as wb

BAR = 1e-10


@cache
def exact(name: str) -> Any:
    """What one process does, in other micro-batches."""
    return pipeline_cases.train(CASES[name], micro=3)


def every_case(rank: int, size: int, names: list[str]) -> Any:
    engine_of = {name: wb.parallel.engine({"pipeline": 2, "data": size // 2, **CASES[name].parallel}) for name in names}
    found = {}
    for name in names:
        engine = engine_of[name]
        found[name] = pipeline_cases.train(CASES[name], engine, part=(engine.samples.rank, engine.samples.size))
        found[name]["cuts"] = engine.cuts
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_every_case_is_that_of_one_process(world: Any, size: int) -> None:
    names = list(CASES) if size == 2 else [name for name in CASES if CASES[name].steps == 20 or name == "windows, auto"]
    ranks = world(size, every_case, names)
    for name in names:
        one = exact(name)
        for ours in (of[name] for of in ranks):
            for key, theirs in one["weights"].items():
                assert float((ours["weights"][key] - theirs).norm()) <= BAR * max(1, float(theirs.norm())), (name, key)
            assert ours["momenta"].keys() == one["momenta"].keys(), name
            for key, theirs in one["momenta"].items():
                assert float((ours["momenta"][key] - theirs).norm()) <= BAR, (name, key)
            for mine, theirs in zip(ours["reports"], one["reports"], strict=True):
                assert mine == pytest.approx(theirs, rel=BAR), name
