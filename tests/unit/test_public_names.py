"""The public names and their signatures: what other people's code relies on."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import wholebatch as wb

NAMES = {
    "Accumulator",
    "Accuracy",
    "BatchError",
    "CheckpointError",
    "ConfigError",
    "ConstantScheduler",
    "CosineScheduler",
    "DataError",
    "FactorScheduler",
    "FencedError",
    "GradientAccumulator",
    "History",
    "InputError",
    "InputTypeError",
    "Joined",
    "LinearScheduler",
    "LivePlot",
    "LossError",
    "Mean",
    "MicroBatches",
    "MultiFactorScheduler",
    "NonFiniteError",
    "OutOfMemoryError",
    "OutOfMemoryWarning",
    "PeerError",
    "Plan",
    "PolynomialScheduler",
    "PromiseWarning",
    "RunFolderError",
    "SquareRootScheduler",
    "Step",
    "StepCheck",
    "StepReport",
    "Timer",
    "TrapezoidScheduler",
    "Warmup",
    "WholeBatchLoss",
    "WholebatchError",
    "WrongStepError",
    "__version__",
    "attach",
    "check_step",
    "convert_batchnorm",
    "data",
    "evaluate",
    "models",
    "parallel",
    "plan",
    "plot",
    "recompute",
    "scale_lr",
    "train",
    "verify",
}

REQUIRED: Any = inspect.Parameter.empty
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
ANY: Any = object()  # a default that may change

# Positional parameters in their order, then "*", then names that must be accepted; more may follow.
SIGNATURES: dict[str, dict[str, Any]] = {
    "Mean.add": {"value": REQUIRED, "weight": 1, "*": None, "mask": None},
    "Mean.merge": {"other": REQUIRED},
    "Accuracy": {"num_classes": REQUIRED, "ignore_index": None, "topk": (1,)},
    "Accuracy.add": {"logits_or_labels": REQUIRED, "targets": REQUIRED, "mask": None},
    "CosineScheduler": {
        "max_update": REQUIRED, "base_lr": ANY, "final_lr": ANY, "warmup_steps": ANY, "warmup_begin_lr": ANY,
    },
    "PolynomialScheduler": {
        "max_update": REQUIRED, "base_lr": REQUIRED, "final_lr": 0.0, "power": 2.0, "warmup_steps": 0,
        "warmup_begin_lr": 0.0,
    },
    "LinearScheduler": {
        "max_update": REQUIRED, "base_lr": REQUIRED, "final_lr": 0.0, "warmup_steps": 0, "warmup_begin_lr": 0.0,
    },
    "FactorScheduler": {"factor": REQUIRED, "base_lr": REQUIRED, "stop_factor_lr": 1e-7},
    "MultiFactorScheduler": {"step": REQUIRED, "factor": REQUIRED, "base_lr": REQUIRED},
    "SquareRootScheduler": {"base_lr": REQUIRED},
    "TrapezoidScheduler": {
        "max_update": REQUIRED, "base_lr": REQUIRED, "warmup_steps": REQUIRED, "decay_steps": REQUIRED, "final_lr": 0.0,
    },
    "ConstantScheduler": {"base_lr": REQUIRED},
    "Warmup": {"schedule": REQUIRED, "steps": REQUIRED, "begin_lr": 0.0},
    "Joined": {"schedules": REQUIRED, "boundaries": REQUIRED},
    "CosineScheduler.get_warmup_lr": {"t": REQUIRED},
    "attach": {"schedule": REQUIRED, "optimizer": REQUIRED},
    "scale_lr": {"lr": REQUIRED, "*": None, "batch_size": REQUIRED, "reference": ANY, "rule": "linear"},
    "Step": {
        "model": REQUIRED, "optimizer": REQUIRED, "loss": REQUIRED, "*": None, "micro_batch": "auto",
        "micro_batch_tokens": None, "micro_batch_cost": None, "clip_norm": None,
        "precision": "fp32", "bitwise": False, "dropout": "keyed", "nonfinite": "raise", "seed": 0, "schedule": None,
        "batch_axis": 0, "group": None, "engine": None,
    },
    "Step.__call__": {"batch": REQUIRED, "position": None},
    "Step.load_state_dict": {"state": REQUIRED},
    "WholeBatchLoss": {"encode": REQUIRED, "loss": REQUIRED},
    "MicroBatches": {"iterator": REQUIRED, "samples": None},
    "GradientAccumulator": {"model": REQUIRED},
    "GradientAccumulator.add": {"losses": REQUIRED, "weights": None},
    "GradientAccumulator.apply": {"optimizer": REQUIRED, "*": None, "clip_norm": None},
    "GradientAccumulator.reset": {},
    "train": {
        "model": REQUIRED, "data": REQUIRED, "*": None, "loss": REQUIRED, "optimizer": REQUIRED, "batch_size": ANY,
        "epochs": ANY, "schedule": None, "schedule_unit": "step", "micro_batch": "auto", "bitwise": False,
        "precision": "fp32", "clip_norm": None, "eval_data": None, "metrics": None, "seed": 0, "device": "auto",
        "parallel": None, "run_dir": None, "log_every": None, "observers": (),
    },
    "evaluate": {
        "model": REQUIRED, "data": REQUIRED, "*": None, "metrics": None, "loss": None, "batch_size": ANY,
        "device": "auto",
    },
    "LivePlot": {"xlabel": None, "ylabel": None, "legend": None, "*": None, "path": None},
    "LivePlot.add": {"x": REQUIRED},
    "plot": {
        "X": REQUIRED, "Y": None, "xlabel": None, "ylabel": None, "legend": None, "xlim": None, "ylim": None,
        "xscale": "linear", "yscale": "linear", "fmts": None, "figsize": ANY, "axes": None, "*": None, "title": "",
    },
    "check_step": {
        "take_step": REQUIRED, "model": REQUIRED, "batches": REQUIRED, "loss": REQUIRED, "*": None, "strict": False,
        "lr": None, "clip_norm": None,
    },
    "plan": {"model": REQUIRED, "batch": REQUIRED, "optimizer": None, "precision": "fp32", "memory": None},
    "recompute": {"model": REQUIRED, "pattern": REQUIRED},
    "convert_batchnorm": {"model": REQUIRED, "group": 32},
    "verify": {"model": REQUIRED, "loss": REQUIRED, "batch": REQUIRED},
    "data.digits": {"split": REQUIRED},
    "data.ImageNetTrain": {"config": None, "process_images": True, "data_root": None},
    "data.ImageNetValidation": {"config": None, "process_images": True, "data_root": None},
    "data.cifar10": {"split": REQUIRED, "root": None},
    "data.cifar100": {"split": REQUIRED, "root": None},
    "data.image_folder": {"path": REQUIRED, "split": None, "on_error": "raise"},
    "data.BatchLoader": {
        "dataset": REQUIRED, "batch_size": REQUIRED, "*": None, "seed": 0, "shuffle": True, "drop_last": False,
        "transform": None,
    },
    "History.last": {"split": REQUIRED},
}  # fmt: skip

ATTRIBUTES = {
    "Accumulator": ["add", "mean", "reset", "merge", "all_reduce", "state_dict", "load_state_dict", "__getitem__",
                    "__len__", "__add__", "__iter__"],
    "Mean": ["add", "value", "weight", "reset", "merge", "all_reduce", "state_dict", "load_state_dict"],
    "Accuracy": ["add", "value", "per_class", "balanced", "confusion", "topk", "count", "reset", "merge", "all_reduce",
                 "state_dict", "load_state_dict"],
    "CosineScheduler": ["base_lr_orig", "max_steps", "get_warmup_lr", "__call__"],
    "Step": ["state_dict", "load_state_dict"],
    "LivePlot": ["add", "close", "flush", "points", "start", "step", "record", "message", "end", "__enter__"],
    "StepReport": ["loss", "weight", "samples", "grad_norm", "micro_batches", "skipped", "noise_scale"],
    "data.BatchLoader": ["state_dict", "load_state_dict"],
    "Plan": ["parameters", "gradients", "optimizer", "activations_per_sample", "peak", "largest"],
    "StepCheck": ["ok", "error", "cases"],
}  # fmt: skip


def named(path: str) -> Any:
    found: Any = wb
    for part in path.split("."):
        found = getattr(found, part)
    return found


def test_the_public_names_are_these():
    assert set(wb.__all__) == NAMES
    assert len(wb.__all__) == len(NAMES)
    assert dir(wb) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there(name):
    assert getattr(wb, name) is not None


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match="did you mean 'CosineScheduler'"):
        _ = wb.CosineSchedule


@pytest.mark.parametrize("path", SIGNATURES)
def test_signatures_hold(path):
    parameters = {
        name: parameter for name, parameter in inspect.signature(named(path)).parameters.items() if name != "self"
    }
    expected = SIGNATURES[path]
    positional = list(expected)[: list(expected).index("*")] if "*" in expected else list(expected)
    given = list(parameters.values())
    assert [p.name for p in given[: len(positional)]] == positional
    assert all(p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in given[: len(positional)])
    for name, default in expected.items():
        if name == "*":
            continue
        assert name in parameters
        if default is not ANY:
            assert parameters[name].default == default, name
    added = [p for p in given if p.name not in expected and p.default is REQUIRED and p.kind not in VARIADIC]
    assert not added, "a new parameter needs a default"


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_attributes_are_there(path):
    missing = [name for name in ATTRIBUTES[path] if not hasattr(named(path), name)]
    slots = getattr(named(path), "__slots__", ())
    annotations = getattr(named(path), "__annotations__", {})
    assert [name for name in missing if name not in slots and name not in annotations] == []


def test_accumulators_take_a_number_or_names():
    assert len(wb.Accumulator(2)) == 2
    assert wb.Accumulator("loss", "n")["n"] == 0


def test_importing_the_package_loads_nothing():
    import subprocess
    import sys

    code = (
        "import sys, wholebatch; print([n for n in ('torch', 'numpy', 'matplotlib', 'omegaconf') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
