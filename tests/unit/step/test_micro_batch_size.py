"""``micro_batch="auto"``: from the plan and the memory there is, measured, bounded, and without a trace."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.step import available, micro_batch_size
from wholebatch.step.micro_batch_size import MicroBatchSize, prefer

SAMPLES = 48


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3000, 600), nn.Dropout(0.3), nn.Tanh(), nn.BatchNorm1d(600), nn.Linear(600, 600), nn.Linear(600, 4)
    )


def batch(samples: int = SAMPLES, width: int = 3000) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(samples, width, generator=generator), torch.arange(samples) % 4


@pytest.fixture
def never_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch_size, "TINY_PEAK", 0)
    monkeypatch.setattr(micro_batch_size, "TINY_BATCH", 0)


def room(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(micro_batch_size, "available", lambda device: size)


def step_of(m: nn.Module, **options: Any) -> wb.Step:
    return wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), **options)


# preferring -----------------------------------------------------------------------------------------------


def measured(rate: dict[int, float]) -> tuple[Any, list[int]]:
    tried: list[int] = []

    def seconds(size: int) -> float:
        tried.append(size)
        return size / rate[size]

    return seconds, tried


def test_the_smallest_within_three_percent_of_the_best() -> None:
    rates = {1: 10, 2: 20, 4: 38, 8: 60, 16: 97.1, 32: 100, 64: 99}
    for fits in (None, lambda size: True):
        assert prefer(measured(rates)[0], 64, 10_000, fits) == 16
        assert prefer(measured({**rates, 16: 96.9})[0], 64, 10_000, fits) == 32
        assert prefer(measured({**rates, 64: 104})[0], 64, 10_000, fits) == 64


def test_at_most_three_steps_are_spent() -> None:
    seconds, tried = measured(dict.fromkeys((1, 2, 4, 8, 16, 32, 64), 1.0))
    assert prefer(seconds, 64, 3 * 64) == 1
    assert tried == [64, 64, 32, 16, 8, 4, 2, 1]
    for fits in (None, lambda size: True):
        seconds, tried = measured({size: float(size) for size in (1, 2, 4, 8, 16, 32, 64)})
        assert prefer(seconds, 64, 3 * 64, fits) == 64
        assert sum(tried) <= 3 * 64
        seconds, tried = measured({size: float(size) for size in (1, 2, 4, 8, 16, 32, 64)})
        assert prefer(seconds, 64, 30, fits) == (8 if fits else 16)
        assert sum(tried) <= 30


def test_no_smaller_ones_where_they_are_slower() -> None:
    seconds, tried = measured({1: 100, 2: 100, 4: 100, 8: 10, 16: 20, 32: 20, 64: 19})
    assert prefer(seconds, 64, 10_000) == 16
    assert tried == [64, 64, 32, 16, 8]


def test_the_first_time_does_not_count() -> None:
    first = []

    def seconds(size: int) -> float:
        first.append(size)
        return 2.0 * size if len(first) == 1 else 1.0 * size if size == 64 else 1.1 * size

    assert prefer(seconds, 64, 3 * 64) == 64


def test_no_larger_ones_where_memory_ends() -> None:
    def seconds(size: int) -> float:
        if size > 8:
            raise torch.OutOfMemoryError
        return 1.0

    for fits in (None, lambda size: True):
        assert prefer(seconds, 64, 10_000, fits) == 8
    assert prefer(lambda size: 1.0, 64, 10_000, fits=lambda size: size <= 4) == 4
    assert prefer(lambda size: 1.0, 64, 10_000, fits=lambda size: False, least=2) == 2


# finding --------------------------------------------------------------------------------------------------


def test_what_takes_next_to_nothing_is_taken_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("no plan is needed")

    monkeypatch.setattr(micro_batch_size, "plan", never)
    room(monkeypatch, 1)
    for width, hidden in ((6, 4), (3000, 4)):  # by its tensors, and by what autograd keeps
        m = nn.Sequential(nn.Linear(width, hidden), nn.Linear(hidden, 4))
        step = step_of(m)
        assert step(batch(width=width)).micro_batches == 1


@pytest.mark.parametrize("dropout", ["keyed", "native"])
def test_what_is_tried_leaves_nothing(never_tiny: None, monkeypatch: pytest.MonkeyPatch, dropout: str) -> None:
    tried = []
    monkeypatch.setattr(micro_batch_size.Finder, "_wait", lambda self: tried.append(1))
    results = []
    for micro in ("auto", 48):
        m = model()
        step = step_of(m, micro_batch=micro, dropout=dropout)
        step._passes.promise.batch_norms = []  # which are not tried
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wb.PromiseWarning)
            step._fitting.find(batch())
        assert all(p.grad is None for p in m.parameters())
        results.append((copy.deepcopy(m.state_dict()), torch.rand(2), step.calls))
        if micro == "auto":
            assert len(tried) >= 6  # before and after each of the largest, twice, and the next
    for name, tensor in results[0][0].items():
        assert torch.equal(tensor, results[1][0][name]), name
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == 0


def test_batch_norm_sees_as_much_as_fits(never_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is faster: a smaller micro-batch is another model there."""
    monkeypatch.setattr(micro_batch_size, "prefer", lambda *_: 3)
    assert step_of(model())(batch()).micro_batches == 1
    m = model()
    m[3] = nn.GroupNorm(4, 600)
    assert step_of(m)(batch()).micro_batches == SAMPLES // 3


def test_the_result_is_that_of_any_micro_batch(never_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for micro in ("auto", 48, 5):
        torch.manual_seed(0)
        m = nn.Sequential(nn.Linear(3000, 60), nn.Dropout(0.3), nn.Tanh(), nn.Linear(60, 4)).double()
        step = step_of(m, micro_batch=micro)
        x, y = batch()
        for _ in range(2):
            step((x.double(), y))
        weights.append(torch.cat([p.detach().flatten() for p in m.parameters()]))
    assert all((w - weights[1]).norm() <= 1e-12 * weights[1].norm() for w in weights)


def test_bounded_by_a_share_of_the_memory(never_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    planned = wb.plan(m, batch(16), optimizer, loss=nn.CrossEntropyLoss())
    held = sum(t.nbytes for t in (*m.parameters(), *m.buffers()))
    wanted = 20
    room(monkeypatch, 2 * (planned.peak(wanted) - held) + 8)
    monkeypatch.setattr(micro_batch_size, "prefer", lambda seconds, limit, budget, fits: limit)
    step = step_of(m)
    step.fit(batch(), SAMPLES)
    assert wanted - 1 <= step.size.of(batch(), SAMPLES) <= wanted
    room(monkeypatch, 8)
    assert step_of(m).fit(batch(), SAMPLES) == 2  # nothing fits; the step says so, if so; batch norm needs two


def test_remembered_by_shape(never_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Any, int, bool]] = []

    def find(self: Any, given: Any, samples: int, measure: bool) -> int:
        found.append((tuple(given[0].shape), samples, measure))
        return min(samples, 7)

    monkeypatch.setattr(micro_batch_size.Finder, "find", find)
    m = nn.Sequential(nn.AdaptiveAvgPool1d(9), nn.Linear(9, 4))
    step = step_of(m)
    shapes = [(14, 30), (14, 30), (20, 30), (5, 30), (14, 50), (14, 50)]
    sizes = [step((torch.randn(shape), torch.arange(shape[0]) % 4)).micro_batches for shape in shapes]
    assert sizes == [2, 2, 3, 1, 2, 2]
    assert found == [((14, 30), 14, True), ((14, 50), 14, False)]


def test_all_of_a_short_batch_is_no_limit_for_a_longer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        micro_batch_size.Finder, "find", lambda self, b, samples, measure: asked.append(samples) or min(samples, 30)
    )
    step = step_of(nn.Linear(6, 4))
    sizes = [step(batch(n, 6)).micro_batches for n in (10, 8, 40, 40)]
    assert (sizes, asked) == ([1, 1, 2, 2], [10, 40])


def test_pieces_are_cut_by_the_plan_alone(never_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 8)
    monkeypatch.setattr(micro_batch_size.Finder, "_largest", lambda *_: 5)
    m = nn.Sequential(nn.Linear(30, 600), nn.Dropout(0.4), nn.Linear(600, 4)).double()
    x, y = batch(16, 30)
    gradients = []
    for micro in ("auto", 3):
        twin = copy.deepcopy(m)
        step = step_of(twin, micro_batch=micro)
        torch.manual_seed(3)
        report = step(wb.MicroBatches(((x[a:b].double(), y[a:b]) for a, b in ((0, 12), (12, 16)))))
        gradients.append((torch.cat([p.grad.flatten() for p in twin.parameters()]), torch.rand(1)))
        if micro == "auto":
            assert report.micro_batches == 4
    assert (gradients[0][0] - gradients[1][0]).norm() <= 1e-12 * gradients[1][0].norm()
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_a_model_that_cannot_be_planned(never_tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3000, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * float(x.sum() > 1e9 or 1.0)

    with pytest.raises(wb.InputError, match="cannot be planned"):
        wb.plan(Reads(), batch(4))
    sizes: list[int] = []
    m = Reads()
    m.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)) if output.requires_grad else None)
    room(monkeypatch, 8 << 30)
    step_of(m)(batch())
    assert sizes[1:5] == [1, 3, 6, 12]  # after the look at two samples: from small sizes upward
    sizes.clear()
    room(monkeypatch, 0)
    monkeypatch.setattr(micro_batch_size, "resident", iter([(100, 0), *[(0, 900)] * 9]).__next__)
    step = step_of(m)
    assert step.fit(batch(), SAMPLES) == 1  # the memory of one sample says that two do not fit


def test_what_is_wrong_with_a_batch_the_step_says(never_tiny: None) -> None:
    with pytest.raises(wb.LossError, match="int64"):
        step_of(nn.Linear(3000, 4))((batch()[0], batch()[1].float()))
    with pytest.raises(wb.BatchError):
        step_of(nn.Linear(3000, 4))((batch()[0], batch()[1][:3]))


def test_training_fetches_the_micro_batches_that_were_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found, fetched = [], []

    def find(self: Any, given: Any, samples: int, measure: bool) -> int:
        found.append((given[0].shape, samples, measure))
        return 7

    monkeypatch.setattr(micro_batch_size.Finder, "find", find)
    x, y = torch.randn(30, 6), torch.arange(30) % 4
    data = [(x[i], y[i]) for i in range(30)]  # read one by one, so that windows are fetched piece by piece

    def collate(samples: list[Any]) -> Any:
        fetched.append(len(samples))
        return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])

    loader = wb.data.BatchLoader(data, 20, collate=collate)
    m = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1)
    history = wb.train(m, loader, loss=nn.CrossEntropyLoss(), optimizer=optimizer, epochs=1, display=False)
    assert found == [((16, 6), 20, True)]
    assert fetched == [16, 7, 7, 6, 7, 3]
    assert history.last("train")["step"] == 2


# memory ---------------------------------------------------------------------------------------------------


def test_control_groups(tmp_path: Any) -> None:
    proc = tmp_path / "cgroup"
    proc.write_text("8:cpu:/x\n4:memory:/a/b\n0::/c\n")
    for folder, limit, used, name, cache in (
        ("memory/a/b", "1000", "700", "total_inactive_file", 50),
        ("memory", str(1 << 62), "5", "total_inactive_file", 0),
    ):
        place = tmp_path / folder
        place.mkdir(parents=True, exist_ok=True)
        (place / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (place / "memory.usage_in_bytes").write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"cache 3\n{name} {cache}\n")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "memory.max").write_text("500\n")
    (tmp_path / "c" / "memory.current").write_text("100\n")
    assert available._of_groups(proc, tmp_path) == [350, 400]
    (tmp_path / "c" / "memory.max").write_text("max\n")
    assert available._of_groups(proc, tmp_path) == [350]


def test_the_least_of_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert (available.available(cpu) or 0) > 1 << 20
    monkeypatch.setattr(available, "_of_kernel", lambda: 900)
    monkeypatch.setattr(available, "_of_groups", lambda: [800, 1000])
    monkeypatch.setattr(available, "left_by_limits", lambda: None)
    assert available.available(cpu) == 800
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available.available(cpu) == 200
    monkeypatch.setattr(available, "left_by_limits", lambda: 150)
    assert available.available(cpu) == 150


# tokens ---------------------------------------------------------------------------------------------------

LENGTHS = [3, 9, 1, 4, 4, 12, 2, 2, 7, 1]


def text() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(1, 11, (len(LENGTHS), 12), generator=generator) * mask
    labels = torch.where(mask.bool(), torch.randint(0, 5, ids.shape, generator=generator), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(11, 6), nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(F.dropout(torch.tanh(self.table(ids)), 0.3)).transpose(1, 2)


def loss_of_dict(m: nn.Module, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(m(given["input_ids"]), given["labels"], reduction="none")
    return losses, (given["labels"] != -100).double()


def gradient_of(given: Any, loss: Any, seen: list[int] | None = None, **options: Any) -> tuple[Tensor, int]:
    torch.manual_seed(5)
    m = Tokens().double()
    if seen is not None:
        m.register_forward_hook(
            lambda module, inputs, output: seen.append(len(output)) if output.requires_grad else None
        )
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.0), loss, **options)
    report = step(given)
    return torch.cat([p.grad.flatten() for p in m.parameters()]), report.micro_batches


@pytest.mark.parametrize(("budget", "sizes"), [(12, [2, 3, 1, 4]), (13, [3, 2, 1, 4]), (1, [1] * 10), (45, [10])])
def test_tokens_cut_and_the_result_stays(budget: int, sizes: list[int]) -> None:
    given, seen = text(), []
    exact, _ = gradient_of(given, loss_of_dict, micro_batch=10)
    for own in (
        {"given": given, "loss": loss_of_dict},
        {"given": {k: v for k, v in given.items() if k != "attention_mask"}, "loss": loss_of_dict},
        {"given": (given["input_ids"], given["labels"]), "loss": nn.CrossEntropyLoss()},
    ):
        seen.clear()
        found, pieces = gradient_of(**own, seen=seen, micro_batch_tokens=budget)
        assert seen == sizes
        assert pieces == len(sizes)
        assert (found - exact).norm() <= 1e-12 * exact.norm()


def test_a_cost_of_ones_own() -> None:
    given, seen = (text()["input_ids"], text()["labels"]), []
    exact, _ = gradient_of(given, nn.CrossEntropyLoss(), micro_batch=10)
    found, _ = gradient_of(
        given,
        nn.CrossEntropyLoss(),
        seen,
        micro_batch_tokens=200,
        micro_batch_cost=lambda batch: [n * n for n in LENGTHS],
    )
    assert seen == [5, 3, 2]
    assert (found - exact).norm() <= 1e-12 * exact.norm()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"micro_batch_tokens": 0}, "a number of tokens, 1 or more"),
        ({"micro_batch_tokens": True}, "a number of tokens, 1 or more"),
        ({"micro_batch_tokens": 5, "micro_batch": 4}, "say the same"),
        ({"micro_batch_cost": len}, "say what a micro-batch may"),
        ({"micro_batch_tokens": 5, "micro_batch_cost": 3}, "expected a function"),
    ],
)
def test_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(wb.ConfigError, match=said):
        step_of(nn.Linear(3, 4), **options)


def test_costs_that_are_none() -> None:
    with pytest.raises(wb.ConfigError, match="micro_batch_cost=lambda"):
        step_of(nn.Linear(6, 4), micro_batch_tokens=5)(batch(5, 6))
    for costs in ([1.0, 2.0], [1.0] * 4 + [-1.0], [1.0] * 4 + [float("nan")]):
        with pytest.raises(wb.BatchError, match="one finite number"):
            step_of(nn.Linear(6, 4), micro_batch_tokens=5, micro_batch_cost=lambda b, c=costs: c)(batch(5, 6))


def test_fewer_tokens_after_memory_ran_out() -> None:
    given = (text()["input_ids"], text()["labels"])
    exact, _ = gradient_of(given, nn.CrossEntropyLoss(), micro_batch=10)
    torch.manual_seed(5)
    m = Tokens().double()
    sizes: list[int] = []

    def short(module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            sizes.append(int((inputs[0] > 0).sum()))
            if sizes[-1] > 12:
                raise torch.OutOfMemoryError("injected")

    m.register_forward_pre_hook(short)
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.0), nn.CrossEntropyLoss(), micro_batch_tokens=30)
    with pytest.warns(wb.OutOfMemoryWarning, match="at most 12 tokens"):
        step(given)
    assert (torch.cat([p.grad.flatten() for p in m.parameters()]) - exact).norm() <= 1e-12 * exact.norm()
    assert MicroBatchSize("auto", 1, None).shrink(1) is False
