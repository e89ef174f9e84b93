"""What ``parallel=`` may say of a pipeline; what it does is in tests/distributed/test_pipeline.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import wholebatch as wb
from wholebatch.core.processes import Alone
from wholebatch.parallel.mesh import Layout, mesh_of
from wholebatch.parallel.pipeline import PipelineEngine, pipeline_of


@pytest.mark.parametrize(
    ("layout", "said", "name", "words"),
    [
        (Layout(tensor=2, pipeline=2), {}, "auto", "pipeline=2 with tensor=2 is not available in this version"),
        (Layout(shard=2, pipeline=2), {}, "auto", "pipeline=2 with shard=2 is not available in this version"),
        (Layout(pipeline=2), {}, "ddp", "engine='ddp' does not go with a pipeline"),
        (Layout(pipeline=2), {"schedule": "gpip"}, "auto", "did you mean 'gpipe'"),
        (Layout(pipeline=3), {"cuts": ["a"]}, "auto", "cuts=['a'] make 2 stages, but pipeline=3 with the schedule"),
        (Layout(pipeline=2), {"cuts": "a", "schedule": "ZBVZeroBubble"}, "auto", "has 4; name 3 modules"),
    ],
)
def test_what_does_not_go_together(layout: Layout, said: dict[str, Any], name: str, words: str) -> None:
    with pytest.raises(wb.ConfigError) as caught:
        pipeline_of(layout, said, name, None, Alone())
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["schedule", "cuts"])
def test_nothing_is_said_in_vain(key: str) -> None:
    with pytest.raises(wb.ConfigError, match="says nothing without pipeline="):
        wb.parallel.engine({key: "gpipe"})


def test_a_backward_of_ones_own_is_refused() -> None:
    model = nn.Linear(2, 3)
    g = wb.GradientAccumulator(model, engine=PipelineEngine(mesh_of(Layout(), Alone()), "1f1b", None))
    with pytest.raises(wb.InputError, match="only Step and train can run it; give this engine to Step"):
        g.add(model(torch.ones(4, 2)))
