"""Out of memory, injected: the window is made again, and the result is that of a run where nothing happened."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb

N = 14
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(1)).double() * torch.arange(1, N + 1)[:, None]
Y = torch.tensor([0, 1, 2, 2, 1, 0, 1, 2, 0, 0, 1, 2, 1, 0])


class Fails(nn.Module):
    """Raises in the k-th forward, or in the backward of the k-th forward, and is the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = 0
        self.at: tuple[str, int] = ("", -1)
        self.error: type[BaseException] = torch.OutOfMemoryError
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += 1
        self.sizes.append(len(x))
        way, number = self.at
        if number != self.forwards:
            return x
        if way == "forward":
            raise self.error("injected")
        if torch.is_grad_enabled():
            x = x.clone().requires_grad_()
            x.register_hook(self._fail)
        return x

    def _fail(self, gradient: Tensor) -> None:
        raise self.error("injected")


class Counts(nn.Module):
    """Buffers that a window changes: one in place, one by another tensor in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("last", torch.zeros(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.last = self.last + x.detach().sum(0)
        return x


def model(dropout: float = 0.5) -> nn.Sequential:
    torch.manual_seed(3)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
    return nn.Sequential(Counts(), Fails(), spectral, nn.Tanh(), nn.Dropout(dropout), Fails(), nn.Linear(8, 3)).double()


class Metric:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Tensor] = []

    def __call__(self, output: Tensor, target: Tensor) -> None:
        self.told.append(torch.cat([output, target[:, None].double()], 1))


def run(
    way: str = "", number: int = -1, *, second: bool = False, micro: Any = 4, loss: Any = None, window: Any = None,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Three steps, with a failure at that forward of the second one."""
    m = model()
    optimizer = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)
    step = wb.Step(m, optimizer, loss or nn.CrossEntropyLoss(), micro_batch=micro, clip_norm=5.0, **options)
    step.watch = metric = Metric()
    torch.manual_seed(11)
    reports = []
    place = m[5 if second else 1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for index in range(3):
            place.at = (way, place.forwards + number) if index == 1 else ("", -1)
            report = step((X, Y) if window is None else window())
            reports.append((report.loss, report.weight, report.samples, report.grad_norm))
    return {
        "weights": [p.detach().clone() for p in m.parameters()],
        "buffers": [b.clone() for b in m.buffers()],
        "momentum": [s["momentum_buffer"].clone() for s in optimizer.state.values()],
        "told": torch.cat(metric.told) if metric.told else torch.zeros(0),
        "reports": reports,
        # the estimate itself is of the first micro-batch, which a window that is made again has smaller
        "state": {**step.state_dict(), "noise": step.noise.windows},
        "drawn": torch.rand(3),
        "sizes": m[1].sizes,
        "said": [w for w in said if w.category is wb.OutOfMemoryWarning],
    }


def close(ours: Any, theirs: Any, bar: float = 1e-12) -> bool:
    if isinstance(ours, Tensor):
        ours, theirs = ours.detach(), theirs.detach()
        scale = max(1.0, float(theirs.double().norm()))
        return ours.shape == theirs.shape and float((ours.double() - theirs.double()).norm()) <= bar * scale
    if isinstance(ours, float):
        return math.isclose(ours, theirs, rel_tol=bar)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(close(a, b, bar) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ("weights", "buffers", "momentum", "told", "reports", "state"):
        assert close(ours[name], theirs[name]), name
    assert torch.equal(ours["drawn"], theirs["drawn"])


UNDISTURBED = run()


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_failure_at_any_micro_batch_changes_nothing(way: str, number: int, second: bool) -> None:
    found = run(way, number, second=second)
    same(found, UNDISTURBED)
    assert len(found["said"]) == 1
    text = str(found["said"][0].message)
    assert text.startswith(f"out of memory in step 2 with {4 if number < 4 else 2} samples in the micro-batch")
    assert "at most 2 samples" in text
    assert found["sizes"][-7:] == [2] * 7  # the third step keeps the smaller size
    assert found["sizes"][:4] == [4, 4, 4, 2]


def test_what_is_watched_is_told_once_where_the_cuts_do_not_nest() -> None:
    same(run("backward", 1, micro=5), UNDISTURBED)  # five were told; then micro-batches of two


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_by_type(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    m[1].error, m[1].at = error, ("forward", 1)
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=7)
    with pytest.warns(wb.OutOfMemoryWarning, match="at most 3 samples"):
        assert step((X, Y)).micro_batches == 5


def test_not_by_message() -> None:
    m = model()
    m[1].error, m[1].at = RuntimeError, ("forward", 2)
    original = RuntimeError.__init__
    assert original is not None

    class Said(RuntimeError):
        def __init__(self, *_: Any) -> None:
            super().__init__("CUDA out of memory. DefaultCPUAllocator: can't allocate memory")

    for error in (RuntimeError, Said):
        m[1].error, m[1].at = error, ("forward", m[1].forwards + 2)
        step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=4)
        with pytest.raises(error):
            step((X, Y))
        assert step.calls == 0


def test_twice_and_down_to_one_sample() -> None:
    m = model()
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=4)
    tried = []

    def short(module: nn.Module, inputs: Any) -> None:
        if not torch.is_grad_enabled():
            return  # keyed dropout looks at two samples where there is one
        tried.append(len(inputs[0]))
        if len(inputs[0]) > 1:
            raise torch.OutOfMemoryError("injected")

    handle = m.register_forward_pre_hook(short)
    with pytest.warns(wb.OutOfMemoryWarning):
        assert step((X, Y)).micro_batches == N
    assert tried == [4, 2] + [1] * N
    handle.remove()
    oracle = model()
    wb.Step(oracle, torch.optim.SGD(oracle.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=N)((X, Y))
    assert close(list(m.parameters()), list(oracle.parameters()))


def test_one_sample_that_does_not_fit() -> None:
    m = model()
    before = copy.deepcopy(m.state_dict())
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=1)
    m[1].at = ("backward", 3)
    with pytest.raises(wb.OutOfMemoryError, match=r"in step 1 with one sample in the micro-batch: injected.*bf16"):
        step((X, Y))
    assert all(torch.equal(a, before[n]) for n, a in m.named_parameters() if (n in before))


def loss_of_pairs() -> Any:
    def encode(m: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(m(batch[0])), batch[1]

    def loss(z: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(z @ z.T / 0.3, labels)

    return wb.WholeBatchLoss(encode, loss)


def test_losses_that_couple_samples() -> None:
    exact = run(loss=loss_of_pairs())
    for way, numbers in {"forward": (1, 4, 5, 8), "backward": (1, 5, 8)}.items():  # four encoded without a graph first
        for number in numbers:
            found = run(way, number, loss=loss_of_pairs())
            failed = bool(found["said"])
            assert failed == (way == "forward" or number >= 5), (way, number)  # the first pass goes forward alone
            for name in ("weights", "buffers", "momentum", "reports", "state"):
                assert close(found[name], exact[name]), (way, number, name)


def test_draws_of_torch_itself() -> None:
    m = model()
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=4, dropout="native")
    torch.manual_seed(5)
    m[1].at = ("forward", 3)
    with pytest.warns(wb.OutOfMemoryWarning):
        step((X, Y))
    other = model()
    torch.manual_seed(5)
    step = wb.Step(other, torch.optim.SGD(other.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=2,
                   dropout="native")  # fmt: skip
    step((X, Y))
    assert close(list(m.parameters()), list(other.parameters()))  # the generators began where the window began


# windows ------------------------------------------------------------------------------------------------


def test_a_window_that_can_be_had_again() -> None:
    def window() -> Any:
        return wb.MicroBatches([(X[:5], Y[:5]), (X[5:11], Y[5:11]), (X[11:], Y[11:])], samples=N)

    for number in (1, 2, 5):
        same(run("backward", number, window=window), UNDISTURBED)


def test_a_loader_that_draws_its_order_gives_the_same_again() -> None:
    data = torch.utils.data.TensorDataset(X, Y)
    loader = torch.utils.data.DataLoader(data, batch_size=5, shuffle=True)

    def window() -> Any:
        return wb.MicroBatches(loader, samples=N)

    same(run("forward", 3, window=window), run(window=window))


def test_an_iterator_cannot_be_had_again() -> None:
    def pieces() -> Iterator[Any]:
        yield X[:8], Y[:8]
        yield X[8:], Y[8:]

    with pytest.raises(wb.OutOfMemoryError, match=r"is an iterator, which is used up.*MicroBatches\(list\(pieces\)\)"):
        run("forward", 3, window=lambda: wb.MicroBatches(pieces(), samples=N))


def test_an_error_that_somebody_keeps_holds_no_memory() -> None:
    from wholebatch.step import redo

    found: list[Any] = []

    def fails() -> None:
        activation = torch.zeros(3)
        found.append(weakref.ref(activation))
        raise MemoryError("no room\nat all")

    try:
        fails()
    except MemoryError as error:
        kept = error
    assert found[0]() is not None
    assert redo.forget(kept) == "no room"
    assert found[0]() is None


def test_nothing_of_the_failed_window_stays_in_memory() -> None:
    m = model()
    kept: list[Any] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept.append(weakref.ref(output))

    m[3].register_forward_hook(note)
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=7)
    m[5].at = ("forward", 1)
    alive = []
    m[2].register_forward_pre_hook(lambda *_: alive.append(sum(ref() is not None for ref in kept)))
    gc.disable()
    try:
        with pytest.warns(wb.OutOfMemoryWarning):
            step((X, Y))
    finally:
        gc.enable()
    assert alive[1] == 0  # when the window begins again


def test_large_buffers_are_copied_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    from wholebatch.step import redo

    monkeypatch.setattr(redo, "_ALWAYS_KEPT", 0)
    same(run("backward", 3), UNDISTURBED)


def test_batch_norm_begins_where_the_window_began() -> None:
    def normed() -> nn.Sequential:
        torch.manual_seed(2)
        return nn.Sequential(Fails(), nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()

    results = []
    for micro, at in ((7, ("backward", 2)), (3, ("", -1))):
        m = normed()
        m[0].at = at
        step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=micro)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step((X, Y))
        results.append(list(m.state_dict().values()))
    assert close(*results)


def test_running_statistics_of_groups_move_once() -> None:
    results = []
    for way, number in (("", -1), ("forward", 2), ("backward", 1), ("backward", 2)):
        torch.manual_seed(3)
        m = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Fails(), nn.Linear(8, 3)).double()
        wb.convert_batchnorm(m, group=2)
        step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=6)
        step((X, Y))
        m[2].at = (way, m[2].forwards + number)
        m[2].sizes.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wb.OutOfMemoryWarning)
            step((X, Y))
        assert way == "" or m[2].sizes[-1] == 2
        assert step.noise.windows == 2
        results.append(list(m.state_dict().values()))
    assert all(close(result, results[0]) for result in results[1:])


def test_a_group_is_not_cut() -> None:
    m = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), Fails(), nn.Linear(8, 3)).double()
    wb.convert_batchnorm(m, group=4)
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=4)
    m[2].at = ("forward", 1)
    with pytest.raises(wb.OutOfMemoryError, match="4 samples, normalised together"):
        step((X, Y))
    wb.convert_batchnorm(m, group=None)
    whole = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=N)
    m[2].at = ("forward", m[2].forwards + 1)
    with pytest.raises(wb.OutOfMemoryError, match="as one group"):
        whole((X, Y))


def test_a_copy_of_a_step_puts_back_its_own_buffers() -> None:
    m = model()
    step = wb.Step(m, torch.optim.SGD(m.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=7)
    step((X, Y))
    twin, other = copy.deepcopy(step), copy.deepcopy(step)
    before = [b.clone() for b in m.buffers()]
    twin.model[1].at = ("backward", twin.model[1].forwards + 2)
    with pytest.warns(wb.OutOfMemoryWarning):
        twin((X, Y))
    other((X, Y))
    assert close(list(twin.model.buffers()), list(other.model.buffers()))
    assert close(list(m.buffers()), before)
    assert not close(list(twin.model.buffers()), before)
