"""A schedule on an optimizer: rates of groups, order of calls, tensors as rates, resuming."""

import io
import math
import warnings

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from wholebatch.core.errors import ConfigError, InputError, InputTypeError
from wholebatch.schedule import ConstantScheduler, CosineScheduler, LinearScheduler, Schedule, attach

COSINE = CosineScheduler(20, 0.3, 0.01, 5)


def optimizer_of(*rates, kind=torch.optim.SGD, **more):
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    for group in groups:
        group["params"][0].grad = torch.ones(2)
    return kind(groups, **more)


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def test_it_is_a_torch_scheduler_and_sets_the_first_rate():
    optimizer = optimizer_of(0.5)
    lrs = attach(COSINE, optimizer)
    assert isinstance(lrs, LRScheduler)
    assert lrs.schedule is COSINE
    assert lrs.last_epoch == 0
    assert rates_of(optimizer) == lrs.get_last_lr() == [COSINE(0)]


def test_the_groups_keep_their_ratios():
    optimizer = optimizer_of(0.2, 0.05, 0.0, 0.1)
    lrs = attach(COSINE, optimizer)
    for t in range(1, 25):
        optimizer.step()
        lrs.step()
        assert rates_of(optimizer) == pytest.approx([COSINE(t) * r for r in (1, 0.25, 0, 0.5)], rel=1e-15), t
        assert rates_of(optimizer)[0] == COSINE(t)  # exactly, not by way of its own initial rate
        assert lrs.get_last_lr() == rates_of(optimizer)


def test_one_group_gets_the_schedule_whatever_its_own_rate():
    for own in (1e-3, 1.0, 7.3):
        optimizer = optimizer_of(own)
        lrs = attach(COSINE, optimizer)
        optimizer.step()
        lrs.step()
        assert rates_of(optimizer) == [COSINE(1)]


def test_attaching_again_takes_the_first_initial_rates():
    optimizer = optimizer_of(0.2, 0.1)
    attach(COSINE, optimizer)
    assert rates_of(optimizer) == [0.0, 0.0]  # the warm-up begins at 0, which says nothing about ratios
    attach(LinearScheduler(10, 0.4), optimizer)
    assert rates_of(optimizer) == [0.4, 0.2]


def test_no_warning_in_right_use_and_torchs_own_in_wrong_use():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = optimizer_of(0.1)
        lrs = attach(COSINE, optimizer)
        for _ in range(3):
            optimizer.step()
            lrs.step()
        resumed_optimizer = optimizer_of(0.1)
        resumed = attach(COSINE, resumed_optimizer)
        resumed.load_state_dict(lrs.state_dict())
        assert resumed._step_count == lrs._step_count  # what torch goes by when it warns
        resumed_optimizer.step()
        resumed.step()
    with pytest.warns(UserWarning, match=r"before `optimizer\.step\(\)`"):
        attach(COSINE, optimizer_of(0.1)).step()


@pytest.mark.parametrize(
    ("kind", "more"),
    [(torch.optim.SGD, {}), (torch.optim.SGD, {"fused": True}), (torch.optim.AdamW, {"fused": True})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_is_a_tensor_is_filled_in_place(kind, more, dtype):
    given = [torch.tensor(0.2, dtype=dtype), torch.tensor(0.1, dtype=dtype)]
    optimizer = optimizer_of(*given, kind=kind, **more)
    lrs = attach(COSINE, optimizer)
    for t in range(1, 8):
        optimizer.step()
        lrs.step()
        assert all(group["lr"] is own for group, own in zip(optimizer.param_groups, given, strict=True))
        assert rates_of(optimizer) == pytest.approx([COSINE(t), COSINE(t) / 2], rel=1e-7 if dtype.itemsize == 4 else 0)
    lrs.load_state_dict({"last_epoch": 2, "base_lrs": [1.0, 1.0]})
    assert all(group["lr"] is own for group, own in zip(optimizer.param_groups, given, strict=True))
    assert rates_of(optimizer) == pytest.approx([COSINE(2), COSINE(2)], rel=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [{"fused": True}, {"capturable": True}, {"capturable": True, "foreach": True}])
def test_a_rate_on_a_device_is_filled_in_place(more):
    weight = torch.nn.Parameter(torch.ones(2, device="cuda"))
    weight.grad = torch.ones_like(weight)
    rate = torch.tensor(0.2, device="cuda")
    optimizer = torch.optim.AdamW([weight], lr=rate, **more)
    lrs = attach(COSINE, optimizer)
    for t in range(1, 8):
        optimizer.step()
        lrs.step()
        assert optimizer.param_groups[0]["lr"] is rate
        assert float(rate) == pytest.approx(COSINE(t), rel=1e-7)


def run(steps, *, resume_at=None, scheduler_last=True):
    """The weights and rates after ``steps``, resumed from files on the way where asked."""
    optimizer = optimizer_of(0.2, 0.1, kind=torch.optim.AdamW)
    lrs = attach(COSINE, optimizer)
    for step in range(steps):
        if step == resume_at:
            file = io.BytesIO()
            weights = [group["params"][0].detach() for group in optimizer.param_groups]
            torch.save([weights, optimizer.state_dict(), lrs.state_dict()], file)
            file.seek(0)
            weights, optimizer_state, lrs_state = torch.load(file, weights_only=True)
            optimizer = optimizer_of(9.0, 9.0, kind=torch.optim.AdamW)
            if scheduler_last:  # either order of making and loading must do
                optimizer.load_state_dict(optimizer_state)
                lrs = attach(COSINE, optimizer)
                lrs.load_state_dict(lrs_state)
            else:
                lrs = attach(COSINE, optimizer)
                lrs.load_state_dict(lrs_state)
                optimizer.load_state_dict(optimizer_state)
            for group, weight in zip(optimizer.param_groups, weights, strict=True):
                group["params"][0].data.copy_(weight)
        optimizer.step()
        lrs.step()
    return [group["params"][0].tolist() for group in optimizer.param_groups], rates_of(optimizer), lrs.state_dict()


@pytest.mark.parametrize("scheduler_last", [True, False])
@pytest.mark.parametrize("resume_at", [0, 1, 7])
def test_resuming_goes_on_exactly(resume_at, scheduler_last):
    assert run(12, resume_at=resume_at, scheduler_last=scheduler_last) == run(12)


def test_loading_sets_the_rates_at_once():
    optimizer = optimizer_of(0.3, 0.3)
    lrs = attach(COSINE, optimizer)
    lrs.load_state_dict({"last_epoch": 9, "base_lrs": [0.2, 0.1]})
    assert rates_of(optimizer) == lrs.get_last_lr() == [COSINE(9), COSINE(9) / 2]


def test_a_state_is_plain_numbers_without_the_schedule():
    optimizer = optimizer_of(torch.tensor(0.5), 0.25)
    lrs = attach(lambda t: 1.0, optimizer)
    assert lrs.state_dict() == {"last_epoch": 0, "base_lrs": [0.5, 0.25]}
    assert all(type(rate) is float for rate in lrs.state_dict()["base_lrs"])


def test_states_that_do_not_fit_are_refused():
    lrs = attach(COSINE, optimizer_of(0.1, 0.1))
    with pytest.raises(ConfigError, match="state is of 1 parameter groups, the optimizer has 2"):
        lrs.load_state_dict({"last_epoch": 3, "base_lrs": [0.1]})
    with pytest.raises(ConfigError, match=r"no state of an attached schedule.*base_lrs"):
        lrs.load_state_dict({"last_epoch": 3})


def test_a_group_added_later_is_refused_with_the_repair():
    optimizer = optimizer_of(0.1)
    lrs = attach(COSINE, optimizer)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))]})
    optimizer.step()
    with pytest.raises(ConfigError, match="attach it after the last add_param_group"):
        lrs.step()


def test_rates_that_are_all_zero_are_refused():
    optimizer = optimizer_of(0.0, 0.0)
    with pytest.raises(ConfigError, match=r"all 2 parameter groups have the learning rate 0.*lr=1"):
        attach(COSINE, optimizer)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0])
def test_initial_rates_that_cannot_be_are_refused(rate):
    optimizer = optimizer_of(0.1, 0.1)
    optimizer.param_groups[1]["lr"] = rate
    with pytest.raises(ConfigError, match="parameter group 1 has the learning rate"):
        attach(COSINE, optimizer)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
def test_a_schedule_that_gives_no_rate_is_refused(rate):
    optimizer = optimizer_of(0.1)
    with pytest.raises(InputError, match="at t=0"):
        attach(lambda t: rate, optimizer)
    assert rates_of(optimizer) == [0.1]
    assert "initial_lr" not in optimizer.param_groups[0]
    lrs = attach(lambda t: rate if t == 2 else 0.5, optimizer)
    for _ in range(1):
        optimizer.step()
        lrs.step()
    optimizer.step()
    with pytest.raises(InputError, match="at t=2"):
        lrs.step()
    assert rates_of(optimizer) == [0.5]


def test_what_cannot_be_attached_is_refused():
    optimizer = optimizer_of(0.1)
    with pytest.raises(InputTypeError, match="is attached already"):
        attach(attach(COSINE, optimizer), optimizer)
    with pytest.raises(InputTypeError, match="needs a function of progress; got float"):
        attach(0.1, optimizer)
    with pytest.raises(InputTypeError, match="needs a torch"):
        attach(COSINE, torch.nn.Linear(2, 2))


def test_plain_functions_and_every_schedule_can_be_attached():
    for schedule in (ConstantScheduler(0.25), lambda t: torch.tensor(0.25)):
        optimizer = optimizer_of(0.1)
        attach(schedule, optimizer)
        assert rates_of(optimizer) == [0.25]
        assert type(optimizer.param_groups[0]["lr"]) is float
    assert isinstance(COSINE, Schedule)
