"""What a tensor group is said to exchange is what two processes do exchange, collective by collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import wholebatch as wb
from wholebatch import models
from wholebatch.parallel.tensor_cost import exchanged
from wholebatch.step.parts import local, settled

SAMPLES = 3


class Collectives(TorchDispatchMode):
    """Bytes of every tensor that is added up, or made whole (torch's CommDebugMode fails on nested modules here)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = {"all_reduce": [], "all_gather_into_tensor": []}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.distributed.tensor import DTensor

        if any(kind is DTensor for kind in types):
            return NotImplemented
        output = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if "c10d" in function.namespace and name not in ("wait_tensor", "_wrap_tensor_autograd"):
            self.found[name].append(output.numel() * output.element_size())
        return output


class Encoder(nn.Module):
    """Torch's own layer behind a table that is split; one of its norms is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 8), nn.Linear(8, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.layer.norm1.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.table(x))).mean(1)


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 6))


def vit() -> nn.Module:
    return models.build("vit", num_classes=3, in_channels=1, image_size=6, patch=3, width=8, depth=2, heads=2)


def language_model() -> nn.Module:
    return models.build("transformer_lm", vocabulary=7, length=6, width=8, depth=1, heads=2)


ENCODER = {
    "table": "colwise_whole",
    "layer.linear1": "colwise",
    "layer.linear2": "rowwise",
    "layer.norm*": "sequence",
    "head": "colwise_whole",
}
CASES: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "first layer": (two_layers, {"0": "colwise", "2": "rowwise"}, "fp32"),
    "encoder": (Encoder, ENCODER, "fp32"),
    "vit": (vit, None, "fp32"),
    "vit, bf16": (vit, None, "bf16"),
    "language model": (language_model, None, "fp32"),
}


def inputs(name: str) -> Tensor:
    if name == "first layer":
        return torch.randn(SAMPLES, 4)
    return torch.randn(SAMPLES, 1, 6, 6) if name.startswith("vit") else torch.randint(0, 7, (SAMPLES, 6))


def both(rank: int, size: int) -> Any:
    """What is said, and what happens: bytes and number of a pass, bytes and number of a step, held of all bytes."""
    rows = {}
    for name, (make, plan, precision) in CASES.items():
        torch.manual_seed(1)
        model, x = make(), inputs(name)
        whole = sum(parameter.nbytes for parameter in model.parameters())
        said = exchanged(model, plan, x, size, precision)
        wb.parallel.engine({"tensor": size} | ({"plan": plan} if plan else {}), model)
        with Collectives() as a_pass, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = model(x).float().sum()
            total.backward()
        with Collectives() as a_step:
            settled(list(model.parameters()))
        summed, gathered = a_pass.found["all_reduce"], a_pass.found["all_gather_into_tensor"]
        norms = a_step.found["all_reduce"]
        held = sum(local(parameter).nbytes for parameter in model.parameters())
        happened = (sum(summed), sum(gathered), len(summed), len(gathered), sum(norms), len(norms), held)
        expected = (SAMPLES * said.summed, SAMPLES * said.gathered, said.sums, said.gathers, said.norms, said.norm_sums)
        rows[name] = (*expected, round(said.part(size) * whole)), happened
    return rows


def test_what_is_said_is_what_happens(world: Any) -> None:
    for rows in world(2, both):
        for name, (said, happened) in rows.items():
            assert said == happened, name
        assert rows["first layer"][0][:4] == (SAMPLES * 6 * 4, 0, 1, 0)  # its input has no gradient
        assert rows["vit"][0][2:4] == (8, 8)  # two layers: two branches each, forward and backward; so have the norms
        assert rows["encoder"][0][5] == 2  # of the norm that is trained
