"""What a run is, and what may not change when it goes on."""

import pytest
import torch

from wholebatch.checkpoint import Fence, RunState, Store
from wholebatch.core.errors import CheckpointError, InputError


def run_of(**changes):
    model = torch.nn.Linear(3, 2)
    given = {
        "model": dict(model.state_dict()),
        "optimizer": torch.optim.AdamW(model.parameters()).state_dict(),
        "step": {"seed": 1, "calls": 7},
        "loader": {"epoch": 1, "consumed": 32},
        "sums": {"loss": {"floats": torch.ones(2, dtype=torch.float64)}},
        "history": [{"step": 1, "loss": float("nan")}],
        "seed": 1,
        "batch_size": 16,
        "data_length": 100,
        "config": {"loss": "CrossEntropyLoss", "schedule": {"name": "cosine", "base_lr": 0.3}, "betas": [0.9, 0.99]},
        "more": {"bound": 3.0},
    }
    return RunState(**{**given, **changes})


def test_it_comes_back_from_disk_as_it_was(tmp_path):
    run = run_of()
    with Fence.take(tmp_path) as fence:
        store = Store(tmp_path, fence=fence)
        assert store.save(run.to_dict(), step=7)
        again = RunState.from_dict(store.load())
    assert again.check_same(run) == run.check_same(again) == []
    for name in ("step", "loader", "seed", "batch_size", "data_length", "config", "more", "versions", "optimizer"):
        assert getattr(again, name) == getattr(run, name), name
    assert torch.equal(again.sums["loss"]["floats"], run.sums["loss"]["floats"])
    assert all(torch.equal(again.model[name], run.model[name]) for name in run.model)
    assert again.to_dict()["config_digest"] == run.config_digest


def with_config(**changes):
    return {"config": {**run_of().config, **changes}}


NARROW = {"model": {"weight": torch.ones(2, 4), "bias": torch.ones(2)}}
COSINE = {"name": "cosine", "base_lr": 0.1}
CHANGES = {
    "batch_size": ({"batch_size": 32}, "batch_size was 16 and is now 32"),
    "seed": ({"seed": 2}, "seed was 1 and is now 2"),
    "data_length": ({"data_length": 101}, "data_length was 100 and is now 101"),
    "model": (NARROW, r"model\['weight'\] was \(2, 3\) float32 and is now \(2, 4\) float32"),
    "loss": (with_config(loss="MSELoss"), "loss was CrossEntropyLoss and is now MSELoss"),
    "schedule": (with_config(schedule=COSINE), r"schedule\['base_lr'\] was 0.3 and is now 0.1"),
    "precision": (with_config(precision="bf16"), "precision was absent and is now bf16"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_refused_by_name_unless_allowed(name):
    changes, message = CHANGES[name]
    saved, now = run_of(), run_of(**changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        saved.check_same(now)
    assert "\n" not in str(caught.value)
    assert f"allow=({name!r},)" in str(caught.value)
    with pytest.raises(CheckpointError):
        saved.check_same(now, allow=("betas",))
    (line,) = saved.check_same(now, allow=(name,))
    assert line.startswith(f"going on with another {name}: ")


def test_other_types_of_weights_are_another_model():
    run = run_of()
    with pytest.raises(CheckpointError, match=r"float32 and is now .* float64"):
        run.check_same(run_of(model={name: value.double() for name, value in run.model.items()}))


def test_several_changes_are_said_together():
    with pytest.raises(CheckpointError, match=r"batch_size.*seed.*allow=\('batch_size', 'seed'\)"):
        run_of().check_same(run_of(seed=3, batch_size=1))


def test_what_may_change():
    other = run_of(step={"calls": 0}, loader={}, history=0, sums={}, more={})
    other.config["betas"] = (0.9, 0.99)
    other.config = dict(reversed(other.config.items()))
    assert run_of().check_same(other) == []


def test_versions_are_said():
    old = run_of(versions={"torch": "1.0"})
    assert old.check_same(run_of()) == [f"saved with torch 1.0, going on with {torch.__version__}"]


def test_allow_names_what_is_compared():
    with pytest.raises(InputError, match=r"'batchsize'.*did you mean 'batch_size'"):
        run_of().check_same(run_of(), allow=("batchsize",))


@pytest.mark.parametrize(
    ("content", "message"),
    [({}, "format None"), ({"format": 2}, "format 2"), ([], "format None"), ({"format": 1}, "lacks batch_size")],
)
def test_something_else_is_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        RunState.from_dict(content)
