"""Plans of tensor parallel: what they name, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import wholebatch as wb
from wholebatch import models
from wholebatch.parallel.tensor import ways_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(2, 4), "fc2": nn.Linear(4, 2)})
        self.norm = nn.LayerNorm(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.table, self.head = nn.Embedding(5, 2), nn.Linear(2, 5, bias=False)
        self.head.weight = self.table.weight


def test_a_pattern_stands_for_one_part_of_a_name() -> None:
    plan = {"blocks.*.mlp.fc1": "colwise", "blocks.1.mlp.*2": "rowwise"}
    assert ways_of(Model(), plan, 2) == {
        "blocks.0.mlp.fc1": "colwise",
        "blocks.1.mlp.fc1": "colwise",
        "blocks.1.mlp.fc2": "rowwise",
    }


def test_the_models_of_this_project_have_plans() -> None:
    for name, options in [("vit", {"image_size": 8}), ("transformer_lm", {})]:
        ways = ways_of(models.build(name, width=8, depth=2, heads=2, **options), None, 2)
        assert [ways[f"layers.1.{part}"] for part in ("attention", "mlp.0", "mlp.2", "norm1")] == [
            "heads",
            "colwise",
            "rowwise",
            "sequence",
        ]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (None, "tensor=2 needs a plan for Model"),
        ({}, "needs a plan for Model"),
        ({"blocks.*.mlp.fc3": "colwise"}, "names no layer of Model; did you mean 'blocks.*.mlp.fc"),
        ({"*.fc1": "colwise"}, "names no layer of Model"),
        ({"zzz": "colwise"}, "it has blocks.*.mlp.fc1, blocks.*.mlp.fc2, blocks.*.norm"),
        ({"blocks.*.mlp.fc1": "colwize"}, "there is no way 'colwize'; did you mean 'colwise'"),
        ({"blocks.*.mlp.fc1:colwise": None}, "has no way"),
        ({"blocks.*.norm": "colwise"}, "is for linear layers and embeddings; this is a LayerNorm"),
        ({"blocks.*.norm": "rowwise"}, "is for linear layers; this is a LayerNorm"),
        ({"blocks.*.mlp.fc1": "sequence"}, "is for layer norms; this is a Linear"),
        ({"blocks.*": "heads"}, "is for attention with heads, qkv and out; this is a Block"),
        ({"head": "colwise_whole"}, "head cannot be split: its head.weight is tied to table.weight"),
    ],
)
def test_what_does_not_fit_is_refused(plan: Any, words: str) -> None:
    with pytest.raises(wb.ConfigError) as caught:
        ways_of(Model(), plan, 2)
    assert words in str(caught.value)


def test_heads_are_shared_alike() -> None:
    with pytest.raises(wb.ConfigError, match="3 heads cannot be shared by 2 processes"):
        ways_of(models.build("vit", image_size=8, width=6, heads=3), None, 2)
