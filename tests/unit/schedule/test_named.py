"""Schedules by name."""

import pytest

import wholebatch as wb
from wholebatch.core.errors import ConfigError
from wholebatch.schedule import SHAPES, CosineScheduler, Schedule, build

ARGUMENTS = {
    "cosine": {"max_update": 20},
    "polynomial": {"max_update": 20, "base_lr": 0.1, "power": 3},
    "linear": {"max_update": 20, "base_lr": 0.1},
    "factor": {"factor": 0.5, "base_lr": 0.1},
    "multi_factor": {"step": [3, 4], "factor": 0.5, "base_lr": 0.1},
    "square_root": {"base_lr": 0.1},
    "trapezoid": {"max_update": 20, "base_lr": 0.1, "warmup_steps": 2, "decay_steps": 3},
    "constant": {"base_lr": 0.1},
}


def test_every_name_builds_its_shape():
    assert set(SHAPES) == set(ARGUMENTS)
    for name, arguments in ARGUMENTS.items():
        schedule = build(name, **arguments)
        assert type(schedule) is SHAPES[name]
        assert isinstance(schedule, Schedule)
        assert schedule == SHAPES[name](**arguments)


def test_names_and_public_names_go_together():
    for name, kind in SHAPES.items():
        assert kind.__name__ == "".join(part.title() for part in name.split("_")) + "Scheduler"
        assert getattr(wb, kind.__name__) is kind


def test_the_table_cannot_be_changed():
    with pytest.raises(TypeError):
        SHAPES["mine"] = CosineScheduler


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(ConfigError, match=r"no schedule 'cosin'; did you mean 'cosine'\?; the shapes are cosine, poly"):
        build("cosin", max_update=20)
    with pytest.raises(ConfigError, match="no schedule None"):
        build(None)


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(ConfigError, match=r"has no argument 'warmup_step'; did you mean 'warmup_steps'\?"):
        build("cosine", max_update=20, warmup_step=5)


def test_a_missing_argument_is_named():
    with pytest.raises(ConfigError, match="'multi_factor' also needs step, base_lr; it takes step, factor, base_lr"):
        build("multi_factor", factor=0.5)


def test_impossible_values_are_the_shapes_own_errors():
    with pytest.raises(ConfigError, match="CosineScheduler got base_lr=-1"):
        build("cosine", max_update=20, base_lr=-1)
