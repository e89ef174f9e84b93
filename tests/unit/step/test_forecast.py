"""The forecast for many processes: worked by hand, and against a ring that is walked hop by hop."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from wholebatch.core.errors import ConfigError
from wholebatch.step import forecast
from wholebatch.step.forecast import Cluster, Layout, Speed, measured, rate_of
from wholebatch.step.plan import Plan
from wholebatch.step.tensor_group import TensorGroup

MB = 10**6


def plan(memory: int | None = None) -> Plan:
    """100 MB of parameters and gradients, 200 of an optimizer, 1 MB a sample."""
    return Plan(100 * MB, 100 * MB, 200 * MB, 0, MB, 0, "fp32", memory, 4, lambda size: (400 + size) * MB)


def ring(size: int, bytes_: int) -> int:
    """What a process of a ring sends, chunk by chunk: each is added around once, and then handed around once."""
    chunks = [bytes_ * (number + 1) // size - bytes_ * number // size for number in range(size)]
    return sum(chunks[hop % size] for hop in range(size - 1)) * 2


@pytest.mark.parametrize("size", [1, 2, 3, 8, 1024])
def test_bytes_are_those_of_a_ring(size: int) -> None:
    cluster = Cluster(plan(), Speed(0, 1e-3), 1e9)
    assert cluster.sent_gradients(Layout(size)) == pytest.approx(ring(size, 100 * MB), abs=2 * size)


def test_bytes_where_the_model_is_split() -> None:
    cluster = Cluster(plan(), Speed(0, 1e-3), 1e9, crossing=1000)
    assert cluster.sent_gradients(Layout(1, shard=4)) == 150 * MB  # 3/4 of parameters and of gradients
    assert cluster.sent_gradients(Layout(2, shard=4)) == 150 * MB + 25 * MB
    assert cluster.sent_gradients(Layout(2, pipeline=4)) == 25 * MB
    assert cluster.forecast(Layout(2, pipeline=4), 100).sent_activations == 2 * 50 * 1000
    assert cluster.forecast(Layout(2), 100).sent_activations == 0


def test_times_by_hand() -> None:
    cluster = Cluster(plan(), Speed(0.01, 0.001, 0.02), 1e9, latency=1e-3, micro_batch=50)
    row = cluster.forecast(Layout(4), 800)  # 200 samples each, in 4 passes
    assert (row.samples, row.micro_batch, row.memory) == (200, 50, 450 * MB)
    assert row.compute == pytest.approx(4 * 0.01 + 0.2 + 0.02)
    assert row.link == pytest.approx(0.15 + 6e-3)
    assert row.waited == pytest.approx(0.156 - 2 / 3 * 0.06)
    assert row.step == pytest.approx(row.compute + row.waited)
    assert row.efficiency == pytest.approx((16 * 0.01 + 0.8 + 0.02) / 4 / row.step)
    assert row.samples_per_second == pytest.approx(800 / row.step)
    assert cluster.forecast(Layout(1), 800).efficiency == 1


def test_a_pipeline_by_hand() -> None:
    cluster = Cluster(plan(), Speed(0, 0.001), 1e9, latency=0, crossing=10_000, micro_batch=10)
    row = cluster.forecast(Layout(1, pipeline=4), 80)
    assert row.compute == pytest.approx(0.02)
    assert row.bubble == pytest.approx(3 * 0.01 / 4)
    assert row.waited == pytest.approx(2 * 80 * 10_000 / 1e9)
    assert row.memory == 100 * MB + 10 * MB  # a quarter of what is always there; 4 micro-batches, a quarter of each
    assert cluster.forecast(Layout(1, shard=4), 80).memory == 100 * MB + 100 * MB + 10 * MB


def test_a_tensor_group_by_hand() -> None:
    """Half of the model is split over 4, so that each has 1/2 + 1/8 of it; 2 such groups share 80 samples."""
    group = TensorGroup(summed=1000, gathered=400, sums=3, gathers=2, norms=8000, norm_sums=5, split=0.5)
    cluster = Cluster(plan(), Speed(0.01, 0.001, 0.02), 1e9, latency=1e-3, group=group, micro_batch=10)
    row = cluster.forecast(Layout(2, tensor=4), 80)
    assert (row.processes, row.tensor, row.samples, row.micro_batch) == (8, 4, 40, 10)
    assert row.sent_gradients == 62_500_000  # 2 · 1/2 of 5/8 of 100 MB
    assert row.sent_activations == 84_000  # 3/4 of 40 · (2 · 1000 + 400) + 2 · 8000
    assert row.memory == 250 * MB + 10 * MB  # 5/8 of 400 MB; the activations of 10 samples, whole
    assert row.compute == pytest.approx(4 * 0.01 + 40 * 0.001 * 5 / 8 + 0.02 * 5 / 8)
    assert row.link == pytest.approx(0.0625 + 2e-3)
    waited_for_gradients = 0.0645 - 2 / 3 * (0.01 + 10 * 0.001 * 5 / 8)
    assert row.waited == pytest.approx(waited_for_gradients + 84e3 / 1e9 + (4 * 3 * (2 * 3 + 2) + 3 * 2 * 5) * 1e-3)
    assert row.bubble == 0
    alone = cluster.forecast(Layout(8), 80)
    assert (alone.tensor, alone.sent_activations, alone.memory) == (1, 0, 410 * MB)
    assert row.efficiency == pytest.approx((8 * 0.01 + 0.08 + 0.02) / 8 / row.step)


def test_the_batch_size_that_hides() -> None:
    cluster = Cluster(plan(), Speed(0.01, 0.001), 1e9, latency=1e-5, group=TensorGroup(summed=1000, split=0.5))
    for layout in (Layout(8), Layout(1024), Layout(8, shard=4), Layout(8, pipeline=2), Layout(8, tensor=2)):
        found = cluster.hides_from(layout)
        assert found is not None
        parts = layout.data * layout.shard
        link = cluster.link_seconds(layout)
        for size, hidden in ((found, True), (found - parts, False)):
            part = 3 / 4 if layout.tensor == 2 else 1
            backward = 2 / 3 * cluster.speed.seconds(size / parts * part) / layout.pipeline
            assert (backward >= link) is hidden
    assert Cluster(plan(500 * MB), Speed(0, 0.001), 1e9).hides_from(Layout(8)) is None  # 100 samples fit; 263 would do
    assert Cluster(plan(), Speed(0, 0.001), 1e9, micro_batch=100).hides_from(Layout(8)) is None


def test_the_batch_size_that_is_efficient() -> None:
    cluster = Cluster(plan(), Speed(0.01, 0.001), 1e9, micro_batch=64)
    found = cluster.batch_for(Layout(64), 0.9)
    assert found is not None
    assert cluster.efficiency(Layout(64), found) >= 0.9 > cluster.efficiency(Layout(64), found - 64)
    assert Cluster(plan(), Speed(0, 0.001), 1e9).batch_for(Layout(1, pipeline=8), 0.95) is None  # its bubble stays


def test_links() -> None:
    assert rate_of("10Gbps") == rate_of("1.25GB/s") == rate_of("10 Gbit/s") == 1.25e9
    for wrong in ("400G", "fast", "-1Gb/s", "400Gb", "0Gb/s", "1Xb/s", ""):
        with pytest.raises(ConfigError, match="expected a rate, such as 400Gb/s"):
            rate_of(wrong)
    with pytest.raises(ConfigError, match="10 processes are no multiple of shard=4"):
        Layout.of(10, shard=4)
    assert Layout.of(12, tensor=3) == Layout(4, tensor=3)
    with pytest.raises(ConfigError, match=r"10 processes are no multiple of .* tensor=4 = 4"):
        Layout.of(10, tensor=4)
    for other in ("shard", "pipeline"):
        with pytest.raises(ConfigError, match=f"{other}=2 with tensor=2 is not available"):
            Layout.of(8, tensor=2, **{other: 2})


class Slow(nn.Module):
    """10 ms a pass and 2 ms a sample, by a clock of its own."""

    clock = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        Slow.clock += 0.01 + 0.002 * len(x)
        return self.linear(x)


def test_speed_is_measured_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "time", SimpleNamespace(perf_counter=lambda: Slow.clock))
    model = Slow().eval()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    batch = (torch.randn(16, 2), torch.zeros(16, dtype=torch.int64))
    found = measured(model, batch, nn.CrossEntropyLoss(), optimizer, "fp32", torch.device("cpu"))
    assert found.a_sample == pytest.approx(0.002)
    assert found.a_pass == pytest.approx(0.01)
    assert found.update == 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
