"""Bitwise mode: the same SHA-256 of the weights, and the same records, on 1, 2, 3 and 4 processes."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import resuming
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.errors import NonFiniteError

MICRO_BATCH = 8


def digest(*modules: nn.Module) -> str:
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    return hashlib.sha256(
        b"".join(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)
    ).hexdigest()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 10, num_layers=2, dropout=0.4, batch_first=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1] + 0.1 * torch.randn(len(x), 10))  # and a draw of its own


def images() -> nn.Module:
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(6, 6, 3)]
    return nn.Sequential(
        *layers, nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(54, 4)
    )


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.2, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(30, 4))


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def adamw(model: nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def muon(model: nn.Module) -> Any:
    return torch.optim.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.01)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], tuple[int, ...], dict[str, Any]]] = {
    "convolution, batch norm, dropout, momentum": (images, sgd, (3, 5, 5), {"clip_norm": 0.5}),
    "recurrent dropout, AdamW": (Recurrent, adamw, (5, 6), {}),
    "attention, AdamW, bf16": (attention, adamw, (5, 6), {"precision": "bf16", "clip_norm": 1.0}),
    "bf16 parameters": (attention, adamw, (5, 6), {"precision": "bf16-true"}),
    "float16": (attention, sgd, (5, 6), {"precision": "fp16", "nonfinite": "skip"}),
    "Muon": (attention, muon, (5, 6), {}),
}


def batches(shape: tuple[int, ...]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """43 samples are 6 micro-batches, the last one short; 13 are fewer than processes; 17 leave one sample."""
    for number, samples in enumerate([43, 13, 17, 8, 43, 40]):
        generator = torch.Generator().manual_seed(number)
        x = torch.randn(samples, *shape, generator=generator)
        x[samples // 2] *= {3: 1e6, 4: 1e-6}.get(number, 1.0)  # one sample's gradient jumps, and falls
        yield x, torch.randint(0, 4, (samples,), generator=generator), torch.rand(samples, generator=generator)


def part(samples: int, rank: int, size: int) -> slice:
    """Unequal numbers of whole micro-batches: the later, the more."""
    count = -(-samples // MICRO_BATCH)
    places = [count * k * k // (size * size) for k in (rank, rank + 1)]
    return slice(min(samples, places[0] * MICRO_BATCH), min(samples, places[1] * MICRO_BATCH))


def weighted(model: nn.Module, batch: Any) -> Any:
    x, y, weights = batch
    return nn.functional.cross_entropy(model(x), y, reduction="none"), weights


def steps(rank: int, size: int, name: str) -> tuple[str, list[Any]]:
    """What six steps come to: the weights' digest, and what the reports say."""
    make, optimizer, shape, options = CASES[name]
    torch.manual_seed(0)
    model = make()
    made = optimizer(model)
    step = wb.Step(model, made, weighted, micro_batch=MICRO_BATCH, bitwise=True, seed=7, **options)
    said: list[Any] = []
    for number, batch in enumerate(batches(shape)):
        own = [tensor[part(len(batch[0]), rank, size)] for tensor in batch]
        torch.rand(rank)  # the caller's generator is another one in each process
        if number % 2:
            chunks = [[t[i : i + 16] for t in own] for i in range(0, len(own[0]), 16)]
            report = step(wb.MicroBatches(iter(chunks)))
        else:
            report = step(tuple(own))
        said.append((report.loss, report.weight, report.grad_norm, report.micro_batches, report.samples))
        said.append((report.skipped, step.state_dict()["bitwise"], step.loss_scale))
    said.append(step.noise.state_dict())
    return digest(model), said


def every_case(rank: int, size: int) -> dict[str, Any]:
    return {name: steps(rank, size, name) for name in CASES}


def test_steps_on_1_to_4_processes_have_the_same_bits(world: Callable[..., list[Any]]) -> None:
    alone = every_case(0, 1)
    for size in (2, 3, 4):
        for found in world(size, every_case):
            for name, (sha, said) in found.items():
                assert sha == alone[name][0], (size, name)
                assert repr(said) == repr(alone[name][1]), (size, name)


def trained(rank: int, size: int, folder: str, at: int | None, options: dict[str, Any]) -> Any:
    return resuming.interrupted(rank, size, folder, at, {**options, "bitwise": True, "digest_every": 5})


def test_a_run_that_goes_on_with_other_processes_has_the_same_bits(
    world: Callable[..., list[Any]], tmp_path: Path
) -> None:
    code, weights, records = trained(0, 1, str(tmp_path / "alone"), None, {})
    assert code == 0
    assert [record["step"] for record in records if "digest" in record] == [5, 10, 15, 20, 24]
    folder = str(tmp_path / "run")
    assert [code for code, *_ in world(2, trained, folder, 8, {})] == [128 + signal.SIGTERM] * 2
    assert [code for code, *_ in world(4, trained, folder, 15, {})] == [128 + signal.SIGTERM] * 4
    for code, others, theirs in world(3, trained, folder, None, {}):
        assert code == 0
        assert all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(weights, others, strict=True))
        assert json.dumps(theirs) == json.dumps(records)
    with pytest.raises(wb.CheckpointError, match=r"bitwise\['micro_batch'\] was 3 and is now 2"):
        resuming.train(folder, bitwise=True, micro_batch=2, resume=True)
    with pytest.raises(wb.CheckpointError, match=r"bitwise\['threads'\] was 1 and is now 2"):
        resuming.train(folder, bitwise=True, threads=2, resume=True)
    with pytest.raises(wb.CheckpointError, match=r"bitwise was .* and is now absent"):
        resuming.train(folder, resume=True)


def mistakes(rank: int, size: int) -> list[str]:
    model = nn.Linear(2, 1)
    step = wb.Step(model, sgd(model), nn.MSELoss(), micro_batch=4, bitwise=True)
    said = []
    for counts, position in (((6, 4), None), ((4, 4), rank * 5), ((4, 0), None)):
        x = torch.ones(counts[rank], 2)
        try:
            step((x, x[:, :1]), position=position)
            said.append("")
        except wb.InputError as error:
            said.append(str(error))
    strange = torch.full((4, 2), float("nan") if rank else 1.0)
    before = digest(model)
    try:
        step((strange, strange[:, :1]))
    except NonFiniteError as error:
        said.append(str(error))
    assert digest(model) == before
    pieces = wb.MicroBatches([(x, x[:, :1]) for x in torch.ones(6, 2).split([4, 2] if rank else [2, 4])])
    try:
        step(pieces)
    except wb.InputError as error:
        said.append(str(error))
    return said


def test_what_is_wrong_is_said_by_every_process(world: Callable[..., list[Any]]) -> None:
    for said in world(2, mistakes):
        assert "begins at sample 6 of the whole batch, within a micro-batch of 4" in said[0]
        assert "position=5 in process 1, but the processes before it have 4 samples" in said[1]
        assert said[2] == ""
        assert "the gradient of step" in said[3]
        assert "begins at sample" in said[4]
