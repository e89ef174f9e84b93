"""What logical workers do, against simulations written out here: copies of the model, plain loops, plain sums."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wholebatch as wb
from wholebatch.core.errors import ConfigError, InputError
from wholebatch.core.processes import Alone
from wholebatch.parallel.rounds import Weights

WORKERS, BATCH, STEPS = 3, 10, 8


def net() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Distinct batches whose size is no multiple of the workers'; losses of some samples are ignored."""
    torch.manual_seed(1)
    x, y = torch.randn(STEPS, BATCH, 6, dtype=torch.float64), torch.randint(0, 4, (STEPS, BATCH))
    y[:, 1::4] = -100
    return list(zip(x[:steps], y[:steps], strict=True))


def part(worker: int) -> slice:
    return slice(BATCH * worker // WORKERS, BATCH * (worker + 1) // WORKERS)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01)


def loss_and_weight(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, int]:
    return nn.functional.cross_entropy(model(x), y, reduction="sum"), int((y != -100).sum())


def ours(parallel: dict[str, Any], steps: int = STEPS, **options: Any) -> tuple[nn.Module, list[Any], Any]:
    """Train step by step; the model as shown at the end, the reports, the step."""
    model = net()
    make = wb.parallel.step_for(parallel)
    step = make(model, sgd(model), nn.CrossEntropyLoss(), engine=wb.parallel.engine(parallel), **options)
    reports = [step(batch) for batch in batches(steps)]
    step.show()
    return model, reports, step


def error(model: nn.Module, theirs: list[Tensor]) -> float:
    """Relative to how far training has come."""
    its, began, mine = (
        torch.cat([p.detach().flatten() for p in of]) for of in (theirs, net().parameters(), model.parameters())
    )
    return float((its - mine).norm() / (its - began).norm())


def worker_gradients(model: nn.Module, x: Tensor, y: Tensor) -> tuple[list[list[Tensor]], int]:
    """Sums of gradients of each worker, and the weight of all."""
    found, total = [], 0
    for worker in range(WORKERS):
        value, weight = loss_and_weight(model, x[part(worker)], y[part(worker)])
        found.append(list(torch.autograd.grad(value, list(model.parameters()))))
        total += weight
    return found, total


def apply(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


# local steps ---------------------------------------------------------------------------------------------


def simulated_local(
    every: int, start: int = 0, steps: int = STEPS, outer: dict[str, float] | None = None, late: bool = False
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The mean of the workers at the end, and each worker's weights."""
    model = net()
    optimizer = sgd(model)
    data = batches(steps)
    for x, y in data[:start]:
        gradients, total = worker_gradients(model, x, y)
        apply(model, optimizer, [torch.stack(each).sum(0) / total for each in zip(*gradients, strict=True)])
    copies = []
    for _ in range(WORKERS):
        one = copy.deepcopy(model)
        own = sgd(one)
        own.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        copies.append((one, own))
    anchor = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(a) for a in anchor]
    weights, pending = [0.0] * WORKERS, None
    mean: list[Tensor] = anchor
    for number, (x, y) in enumerate(data[start:], 1):
        for worker, (one, own) in enumerate(copies):
            value, weight = loss_and_weight(one, x[part(worker)], y[part(worker)])
            own.zero_grad()
            (value / weight).backward()
            own.step()
            weights[worker] += weight
        models = [[p.detach().clone() for p in one.parameters()] for one, _ in copies]
        shares = [w / sum(weights) for w in weights]
        mean = [sum(s * w for s, w in zip(shares, each, strict=True)) for each in zip(*models, strict=True)]  # type: ignore[misc]
        if number % every:
            continue
        if late:
            sent = [[p.clone() for p in one.parameters()] for one, _ in copies]
            if pending is not None:  # what was sent a round ago is replaced by the mean of it
                old_mean, old_sent = pending
                with torch.no_grad():
                    for (one, _), was in zip(copies, old_sent, strict=True):
                        for p, m, w in zip(one.parameters(), old_mean, was, strict=True):
                            p += m - w
                sent = [[p.detach().clone() for p in one.parameters()] for one, _ in copies]
            mean = [sum(s * w for s, w in zip(shares, each, strict=True)) for each in zip(*sent, strict=True)]  # type: ignore[misc]
            pending = mean, sent
        else:
            for a, m, v in zip(anchor, mean, velocity, strict=True):
                outer_gradient = a - m
                if outer is None:
                    a.copy_(m)
                else:
                    v.mul_(outer["momentum"]).add_(outer_gradient)
                    a.sub_(outer["lr"] * (outer_gradient + outer["momentum"] * v))
            for one, _ in copies:
                with torch.no_grad():
                    for p, a in zip(one.parameters(), anchor, strict=True):
                        p.copy_(a)
            mean = anchor
        weights = [0.0] * WORKERS
    return mean, [[p.detach() for p in one.parameters()] for one, _ in copies]


@pytest.mark.parametrize(("every", "start"), [(1, 0), (2, 0), (3, 0), (2, 3)])
def test_local_steps_and_their_weighted_mean(every: int, start: int) -> None:
    model, _, _ = ours({"workers": WORKERS, "local_steps": every, "start": start}, micro_batch=2)
    assert error(model, simulated_local(every, start)[0]) < 1e-14


def test_an_outer_nesterov_step() -> None:
    for outer in ("diloco", {"diloco": {"lr": 0.5, "momentum": 0.6}}):
        model, _, _ = ours({"workers": WORKERS, "local_steps": 2, "outer": outer})
        said = {"lr": 0.7, "momentum": 0.9} if outer == "diloco" else {"lr": 0.5, "momentum": 0.6}
        assert error(model, simulated_local(2, outer=said)[0]) < 1e-14
    torch_model = net()  # and it is torch's own
    optimizer = torch.optim.SGD(torch_model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    model = net()
    weights = Weights(Alone(), model, [0])
    for seed in range(3):
        torch.manual_seed(seed)
        change = [torch.randn_like(p) for p in model.parameters()]
        apply(torch_model, optimizer, [-c for c in change])
        weights.move(change, 0.7, 0.9)
    for a, b in zip(weights.anchor, torch_model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("steps", [2, 4, 5, 8])
def test_a_mean_that_is_applied_one_round_late(steps: int) -> None:
    model, _, _ = ours({"workers": WORKERS, "local_steps": 2, "overlap": True}, steps)
    theirs, workers = simulated_local(2, late=True, steps=steps)
    assert error(model, theirs) < 1e-14
    spread = max(float((a - b).norm()) for a, b in zip(workers[0], workers[1], strict=True))
    assert spread > 1e-3  # workers differ after a round, which is what late means


def test_what_local_steps_report() -> None:
    model = net()
    value, weight = loss_and_weight(model, *batches()[0])
    _, reports, step = ours({"workers": WORKERS, "local_steps": 3})
    assert [report.samples for report in reports] == [BATCH] * STEPS
    assert [report.weight > 0 for report in reports] == [False, False, True] * 2 + [False, False]
    weights = [loss_and_weight(model, x, y)[1] for x, y in batches()]
    assert [report.weight for report in reports if report.weight] == [sum(weights[:3]), sum(weights[3:6])]
    assert reports[2].micro_batches == 9
    assert reports[2].grad_norm > 0
    _, reports, step = ours({"workers": WORKERS, "local_steps": 1}, 1)
    assert reports[0].loss == pytest.approx(float(value.detach()) / weight, rel=1e-14)
    assert step.calls == step.applied == 1


def test_sums_since_the_last_meeting_are_given_when_the_model_is_shown() -> None:
    model = net()
    parallel = {"workers": WORKERS, "local_steps": 3}
    step = wb.parallel.step_for(parallel)(model, sgd(model), nn.CrossEntropyLoss(), engine=wb.parallel.engine(parallel))
    weights = [loss_and_weight(model, x, y)[1] for x, y in batches()]
    for batch in batches()[:5]:
        step(batch)
    left = step.show()
    assert left is not None
    assert left.weight == sum(weights[3:5])
    again = step.show()
    assert again is None or again.weight == 0
    for batch in batches()[5:]:
        step(batch)
    step.show()
    assert error(model, simulated_local(3)[0]) < 1e-14  # looking changed nothing


def test_batch_norm_statistics_are_each_workers_own() -> None:
    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)).double()

    parallel = {"workers": 2, "local_steps": 2}
    model = make()
    step = wb.parallel.step_for(parallel)(
        model, sgd(model), nn.CrossEntropyLoss(ignore_index=-1), engine=wb.parallel.engine(parallel)
    )
    data = [(x, y.clamp(min=0)) for x, y in batches(2)]
    copies = [(one, sgd(one)) for one in (make(), make())]
    for x, y in data:
        step((x, y))
        for worker, (one, own) in enumerate(copies):
            mine = slice(5 * worker, 5 * worker + 5)
            own.zero_grad()
            nn.functional.cross_entropy(one(x[mine]), y[mine]).backward()
            own.step()
    step.show()
    for name, value in model.state_dict().items():
        theirs = [one.state_dict()[name] for one, _ in copies]
        expected = (theirs[0] + theirs[1]) / 2 if value.is_floating_point() else theirs[0]
        assert torch.allclose(value, expected, rtol=1e-13), name


# engines -------------------------------------------------------------------------------------------------


def test_workers_alone_change_nothing_but_the_order_of_addition() -> None:
    model, reports, _ = ours({"workers": WORKERS}, micro_batch=2)
    plain = net()
    step = wb.Step(plain, sgd(plain), nn.CrossEntropyLoss())
    theirs = [step(batch) for batch in batches()]
    assert error(model, list(plain.parameters())) < 1e-14
    for mine, its in zip(reports, theirs, strict=True):
        assert (mine.weight, mine.samples) == (its.weight, its.samples)
        assert mine.loss == pytest.approx(its.loss, rel=1e-14)


@pytest.mark.parametrize("late", [1, 3])
def test_stale_gradients(late: int) -> None:
    model, reports, _ = ours({"workers": WORKERS, "stale": late})
    theirs = net()
    optimizer, waiting = sgd(theirs), []
    for x, y in batches():
        gradients, total = worker_gradients(theirs, x, y)
        waiting.append([torch.stack(each).sum(0) / total for each in zip(*gradients, strict=True)])
        if len(waiting) > late:
            apply(theirs, optimizer, waiting.pop(0))
    assert error(model, list(theirs.parameters())) < 1e-14
    assert [report.grad_norm > 0 for report in reports] == [False] * late + [True] * (STEPS - late)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_rounded_to_16_bits(dtype: torch.dtype) -> None:
    """Each worker's sum, and then the sum of all, are rounded; float16 with scales that are powers of two."""
    model, _, _ = ours({"workers": WORKERS, "compress": "bf16" if dtype is torch.bfloat16 else "fp16"})
    theirs = net()
    optimizer = sgd(theirs)
    for x, y in batches():
        gradients, total = worker_gradients(theirs, x, y)
        tops = [max(float(g.abs().max()) for g in of_worker) for of_worker in gradients]
        scales = [1.0] * WORKERS if dtype is torch.bfloat16 else [2.0 ** -(_floor_log2(top) - 14) for top in tops]
        rounded = [[(g * s).to(dtype).double() / s for g in gs] for gs, s in zip(gradients, scales, strict=True)]
        common = min(scales) / (
            1 if dtype is torch.bfloat16 else 4
        )  # three workers' sum is below four times the largest
        sums = [torch.stack(each).sum(0) * common for each in zip(*rounded, strict=True)]
        apply(theirs, optimizer, [s.to(dtype).double() / common / total for s in sums])
    exact, _, _ = ours({"workers": WORKERS})
    assert error(model, list(theirs.parameters())) < 1e-14
    rough = error(model, list(exact.parameters()))
    assert 1e-6 < rough < (1e-2 if dtype is torch.bfloat16 else 1e-3)


def _floor_log2(value: float) -> int:
    return math.floor(math.log2(value))


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_float16_keeps_gradients_of_any_size(scale: float) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") * scale

    found = []
    for parallel in ({"workers": WORKERS}, {"workers": WORKERS, "compress": "fp16"}):
        model = net()
        step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), loss, engine=wb.parallel.engine(parallel))
        step(batches()[0])
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    exact, rounded = found
    assert float((exact - rounded).norm() / exact.norm()) < 1e-3


def test_float16_scales_by_workers_that_have_a_gradient() -> None:
    """A worker without any must not make tiny gradients of others vanish."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none") * batch[2]

    x, y = batches()[0]
    factors = torch.full((BATCH,), 1e-9, dtype=torch.float64)
    factors[part(1)] = 0
    model = net()
    parallel = {"workers": WORKERS, "compress": "fp16"}
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), loss, engine=wb.parallel.engine(parallel))
    assert 0 < step((x, y.clamp(min=0), factors)).grad_norm < 1e-6


def dense_power_sgd(rank: int, first: dict[int, Tensor]) -> nn.Module:
    """PowerSGD as its paper has it, with dense matrices, on one process."""
    model = net()
    optimizer = sgd(model)
    qs = dict(first)
    errors = [{number: torch.zeros_like(p) for number, p in enumerate(model.parameters())} for _ in range(WORKERS)]
    for x, y in batches():
        gradients, total = worker_gradients(model, x, y)
        update = []
        for number in range(4):
            parts = [of_worker[number] / total for of_worker in gradients]
            if number not in qs:
                update.append(torch.stack(parts).sum(0))
                continue
            matrices = [p + e[number] for p, e in zip(parts, errors, strict=True)]
            left, _ = torch.linalg.qr(torch.stack([m @ qs[number] for m in matrices]).sum(0))
            rights = [m.T @ left for m in matrices]
            qs[number] = torch.stack(rights).sum(0)
            for e, m, r in zip(errors, matrices, rights, strict=True):
                e[number] = m - left @ r.T
            update.append(left @ qs[number].T)
        apply(model, optimizer, update)
    return model


@pytest.mark.parametrize("rank", [1, 2])
def test_power_sgd_is_that_of_its_paper(rank: int) -> None:
    engine = wb.parallel.engine({"workers": WORKERS, "compress": {"powersgd": rank}})
    model = net()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(), micro_batch=3, engine=engine)
    engine.begin(list(model.parameters()), model)
    first = {number: engine._q_of(number).clone() for number in (0, 2)}  # type: ignore[attr-defined]
    assert first[0].shape == (6, rank)
    for batch in batches():
        step(batch)
    assert error(model, list(dense_power_sgd(rank, first).parameters())) < 1e-13
    exact, _, _ = ours({"workers": WORKERS})
    assert error(model, list(exact.parameters())) > 1e-3


def test_power_sgd_sends_what_it_left_out_later() -> None:
    """With a constant gradient, all that was applied comes to all that there was, but for what is still kept back."""
    engine = wb.parallel.engine({"workers": 2, "compress": {"powersgd": 1}})
    model = nn.Linear(8, 7, bias=False).double()
    torch.manual_seed(4)
    wanted = torch.randn(7, 8, dtype=torch.float64)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return (m.weight * wanted).sum() * torch.ones_like(b)  # type: ignore[operator]

    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.0), loss, engine=engine)
    applied = torch.zeros(7, 8, dtype=torch.float64)
    for count in range(1, 31):
        step(torch.ones(5, dtype=torch.float64))
        assert model.weight.grad is not None
        applied += model.weight.grad
        left = sum(errors["weight"] for errors in engine.state_dict()["errors"].values())  # type: ignore[attr-defined]
        assert torch.allclose(applied + left, count * wanted, rtol=1e-12, atol=1e-12)
    assert float((applied / 30 - wanted).norm() / wanted.norm()) < 0.2  # without feedback it stays what rank 1 leaves
    once = torch.linalg.svdvals(wanted)
    assert float(once[1:].norm() / once.norm()) > 0.5


def test_a_gradient_that_is_not_finite_leaves_no_trace() -> None:
    for parallel in ({"workers": 2, "compress": {"powersgd": 1}}, {"workers": 2, "compress": "fp16"}):
        model = net()
        engine = wb.parallel.engine(parallel)
        step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(), engine=engine, nonfinite="skip")
        x, y = batches()[0]
        step((x, y))
        bad = x.clone()
        bad[0, 0] = torch.inf
        assert step((bad, y)).skipped
        assert not step((x, y)).skipped
        assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_batch_of_weight_0_changes_nothing() -> None:
    for parallel in ({"compress": "bf16"}, {"compress": {"powersgd": 1}}, {"stale": 1}, {"local_steps": 2}):
        whole = {"workers": WORKERS, **parallel}
        model = net()
        step = wb.parallel.step_for(whole)(model, sgd(model), nn.CrossEntropyLoss(), engine=wb.parallel.engine(whole))
        x, y = batches()[0]
        report = step((x, torch.full_like(y, -100)))
        step.show()
        assert report.weight == 0
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net().parameters(), strict=True))


# what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"compress": "bf16"}, "compress='bf16' needs workers=K"),
        ({"workers": 0}, "workers=0; expected a whole number, 1 or more"),
        ({"workers": True, "stale": 1}, "workers=True"),
        ({"workers": 2, "compress": "int4"}, "expected 'bf16', 'fp16' or"),
        ({"workers": 2, "compress": {"powersgd": 0}}, "powersgd=0; expected a whole number, 1"),
        ({"workers": 2, "compress": "bf16", "stale": 1}, "compress and stale cannot be combined"),
        ({"workers": 2, "compress": "bf16", "local_steps": 2}, "compress and local_steps cannot be combined"),
        ({"workers": 2, "outer": "diloco"}, "say local_steps=H"),
        ({"workers": 2, "overlap": True}, "say local_steps=H"),
        ({"workers": 2, "local_steps": 2, "outer": "nesterov"}, "expected 'average', 'diloco' or"),
        ({"workers": 2, "local_steps": 2, "outer": {"diloco": {"rate": 1}}}, "expected 'average', 'diloco' or"),
        ({"workers": 2, "local_steps": 2, "outer": {"diloco": {"lr": 0}}}, "lr above 0"),
        ({"workers": 2, "local_steps": 2, "outer": "diloco", "overlap": True}, "overlap is of the mean only"),
        ({"workers": 2, "local_steps": 2, "overlap": 1}, "overlap=1; expected true or false"),
        ({"workers": 2, "stale": -1}, "stale=-1"),
        ({"workers": 2, "engine": "ddp"}, "engine='ddp' cannot be combined with workers=2"),
        ({"workers": 2, "tensor": 2}, "tensor=2 cannot be combined"),
        ({"workers": 2, "local_step": 2}, "no key 'local_step'; did you mean 'local_steps'"),
    ],
)
def test_what_cannot_be(parallel: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        wb.parallel.engine(parallel)


def test_what_cannot_be_together() -> None:
    def make(parallel: dict[str, Any], model: nn.Module | None = None, loss: Any = None, **options: Any) -> None:
        model = net() if model is None else model
        wb.parallel.step_for(parallel)(
            model, sgd(model), loss or nn.CrossEntropyLoss(), engine=wb.parallel.engine(parallel), **options
        )

    coupled = wb.WholeBatchLoss(lambda m, b: m(b[0]), lambda z: (z @ z.T).sum())
    for parallel in ({"workers": 2, "compress": "bf16"}, {"workers": 2, "local_steps": 2}):
        with pytest.raises(InputError, match=r"2 workers.* cannot be combined here: a WholeBatchLoss"):
            make(parallel, loss=coupled)
        with pytest.raises(InputError, match="grouped batch norm"):
            make(parallel, wb.convert_batchnorm(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), group=2))
        with pytest.raises(InputError, match="float16"):
            make(parallel, precision="fp16")
    with pytest.raises(InputError, match="bf16-true"):
        make({"workers": 2, "local_steps": 2}, net().float(), precision="bf16-true")
    sparse = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 4))
    model_step = wb.Step(
        sparse,
        torch.optim.SGD(sparse.parameters(), lr=0.1),
        nn.CrossEntropyLoss(),
        engine=wb.parallel.engine({"workers": 2, "compress": "bf16"}),
    )
    with pytest.raises(InputError, match=r"'0.weight' has a sparse gradient"):
        model_step((torch.randint(0, 9, (4, 2)), torch.randint(0, 4, (4,))))
    g = wb.GradientAccumulator(net(), engine=wb.parallel.engine({"workers": 2, "compress": "bf16"}))
    model = g._model
    with pytest.raises(InputError, match="only Step and train know whose"):
        g.add(model(batches()[0][0]) ** 2)


def test_an_engine_of_local_steps_is_for_them_alone() -> None:
    parallel = {"workers": 2, "local_steps": 2}
    model = net()
    step = wb.Step(model, sgd(model), nn.CrossEntropyLoss(), engine=wb.parallel.engine(parallel))
    with pytest.raises(ConfigError, match="make the step by"):
        step(batches()[0])
