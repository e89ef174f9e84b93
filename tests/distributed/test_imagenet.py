"""ImageNet on several processes: unpacked once, and the same crops and the same result as on one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import wholebatch as wb


def archive(folder: Path) -> None:
    """Eleven images of two classes, as the official archive has them."""
    draw = np.random.default_rng(0)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset, images in (("n01440764", 6), ("n02119789", 5)):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for number in range(images):
                    file = io.BytesIO()
                    Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "PNG")
                    add(tar, f"{synset}_{number}.JPEG", file.getvalue())
            add(outer, f"{synset}.tar", inner.getvalue())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3 * 8 * 8, 2).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear(images.double().flatten(1))


def training(rank: int, size: int, root: str) -> Any:
    data = wb.data.ImageNetTrain({"size": 8}, data_root=root)
    model = Net()
    history = wb.train(
        model,
        data,
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        batch_size=5,  # the last one has 1 sample: a process goes without
        epochs=2,
        eval_data=data,
        display=False,
    )
    return model.linear.weight.detach().numpy(), [dict(record) for record in history.records], data.relpaths


def test_as_on_one_process(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
        archive(tmp_path / name)
    weight, records, paths = training(0, 1, str(tmp_path / "one"))
    assert len(paths) == 11
    for other, others, same in world(3, training, str(tmp_path / "many")):
        np.testing.assert_allclose(other, weight, rtol=1e-12, atol=1e-14)
        assert same == paths
        for record, one in zip(others, records, strict=True):
            for name in ("loss", "accuracy", "samples", "step"):
                assert record.get(name) == pytest.approx(one.get(name), rel=1e-12)
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == [
        ".train.lock", "ILSVRC2012_img_train.tar", "train",
    ]  # fmt: skip
