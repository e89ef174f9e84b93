"""Half precision on several processes: gradients of bfloat16 parameters are summed in float32 over them, too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import wholebatch as wb


def trained(rank: int, size: int, precision: str, samples: int = 96, **options: Any) -> dict[str, Any]:
    torch.manual_seed(rank)  # the first one's weights are everybody's, the float32 copies among them
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(samples, 6, generator=draw), torch.arange(samples) % 3
    first, last = (0, samples) if size == 1 else (0, 64) if rank == 0 else (64, samples)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = wb.Step(model, adam, nn.CrossEntropyLoss(), micro_batch=1, precision=precision, **options)
    skipped = [step((x[first:last], y[first:last]), position=first).skipped for _ in range(2)]
    grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    weights = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    return {"grad": grad, "weights": weights, "skipped": skipped, "scale": step.loss_scale}


def both(rank: int, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: trained(rank, size, name) for name in ("bf16-true", "fp16")}
    found["empty"] = trained(rank, size, "bf16-true", samples=40)
    found["ddp"] = trained(rank, size, "bf16-true", engine=wb.parallel.engine("ddp"))
    model = nn.Linear(2, 2).to(torch.bfloat16)
    found["auto"] = type(wb.parallel.engine("auto", model)).__name__
    return found


def test_two_processes_give_the_step_of_one(world: Any) -> None:
    ranks = world(2, both)
    for name, samples in (("bf16-true", 96), ("fp16", 96), ("empty", 40)):
        one = trained(0, 1, name if name != "empty" else "bf16-true", samples)
        for ours in (rank[name] for rank in ranks):
            assert ours["grad"].dtype is torch.float32
            norm: Tensor = one["grad"].norm()
            assert float((ours["grad"] - one["grad"]).norm() / norm) < 1e-3
            assert float((ours["weights"] - one["weights"]).norm()) < 1e-3 * float(one["weights"].norm())
            assert (ours["skipped"], ours["scale"]) == (one["skipped"], one["scale"])
    assert torch.equal(ranks[0]["bf16-true"]["weights"], ranks[1]["bf16-true"]["weights"])
    assert torch.equal(ranks[0]["ddp"]["weights"], ranks[0]["bf16-true"]["weights"])
    assert ranks[0]["auto"] == "Flat"
