"""From a configuration to objects."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wholebatch.config import Config, load
from wholebatch.config.build import OPTIMIZERS, build, check_names
from wholebatch.core.errors import ConfigError, DataError, InputError
from wholebatch.data import Compose, Normalize, ShiftRotate
from wholebatch.schedule import CosineScheduler, Warmup


def parts_of(*overrides: str):
    return build(load("digits", overrides=overrides))


def test_the_recipe_builds_what_it_says():
    config = load("digits")
    parts = build(config)
    assert len(parts.train_data) + len(parts.test_data) == 1797
    assert parts.classes == tuple("0123456789")
    assert parts.num_classes == 10
    assert parts.steps_per_epoch == math.ceil(len(parts.train_data) / config.batch_size)
    assert parts.progress == config.epochs * parts.steps_per_epoch
    assert isinstance(parts.train_transform, Compose)
    assert [type(part) for part in parts.train_transform.transforms] == [ShiftRotate, Normalize]
    assert isinstance(parts.test_transform, Normalize)
    assert isinstance(parts.loss, nn.CrossEntropyLoss)
    assert parts.optimizer.param_groups[0]["lr"] == config.lr
    assert {id(p) for g in parts.optimizer.param_groups for p in g["params"]} == {
        id(p) for p in parts.model.parameters()
    }
    images = parts.test_transform(parts.test_data.inputs[:3], seed=0, epoch=0, indices=torch.arange(3))
    assert parts.model(images).shape == (3, 10)


def test_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> torch.Tensor:
        return nn.utils.parameters_to_vector(parts_of(f"seed={seed}").model.parameters())

    first = weights(1)
    torch.rand(7)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


def test_the_schedule_runs_to_the_end_of_training_in_its_own_unit():
    parts = parts_of("epochs=20", "lr=0.5", "schedule={shape: cosine, warmup_steps: 4, final_lr: 0.1}")
    assert parts.schedule == CosineScheduler(parts.progress, 0.5, 0.1, 4, 0.0)
    assert parts.schedule.end == parts.progress == 20 * parts.steps_per_epoch
    by_epoch = parts_of("epochs=20", "schedule_unit=epoch", "schedule.warmup_steps=4")
    assert by_epoch.schedule.end == by_epoch.progress == 20
    early = parts_of("epochs=20", "schedule.max_update=30", "schedule.warmup_steps=4")
    assert early.schedule.end == 30 < early.progress


def test_shapes_without_a_warm_up_of_their_own_get_one():
    parts = parts_of("lr=0.5", "schedule={shape: factor, factor: 0.9, warmup_steps: 4, warmup_begin_lr: 0.1}")
    assert isinstance(parts.schedule, Warmup)
    assert [parts.schedule(t) for t in (0, 4)] == [0.1, 0.5]
    assert parts_of("schedule=constant").schedule is None
    assert parts_of("schedule=constant", "schedule.warmup_steps=4").schedule(100) == load("digits").lr


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lbfgs", "sparseadam", "muon"}))
def test_every_optimizer_can_be_named(name):
    assert type(parts_of(f"optimizer={name}").optimizer).__name__.lower() == name


def test_arguments_reach_the_optimizer_the_model_and_the_loss():
    parts = parts_of(
        "optimizer=adamw",
        "optimizer.betas=[0.8, 0.9]",
        "optimizer.eps=1e-6",
        "model.width=8",
        "loss.label_smoothing=0.1",
    )
    assert parts.optimizer.defaults["betas"] == (0.8, 0.9)
    assert parts.optimizer.defaults["eps"] == 1e-6
    assert next(parts.model.parameters()).shape[0] == 8
    assert parts.loss.label_smoothing == 0.1


def test_without_augmentation_there_is_only_what_the_data_set_does():
    assert isinstance(parts_of("data.augment=null").train_transform, Normalize)
    for amount in ("max_shift", "max_degrees", "max_scale"):
        moved = parts_of("data.augment=null", f"data.augment.{amount}=0.5").train_transform.transforms[0]
        assert getattr(moved, amount) == 0.5


WRONG_NAMES = [
    ("data=digit", "data.name=digit: there is no such data set; did you mean 'digits'?"),
    ("model=lenett", "did you mean 'lenet'?"),
    ("model=xyz", "choose from contrastive, lenet"),
    ("model.widht=3", "did you mean 'width'?"),
    ("model.num_classes=3", "small_cnn does not take it"),
    ("optimizer=adamm", "did you mean 'adam'?"),
    ("optimizer.momentun=0.9", "optimizer.momentun: adamw does not take it"),
    ("optimizer=sgd optimizer.momentun=0.9", "did you mean 'momentum'?"),
    ("optimizer=adamw optimizer.momentum=0.9", "optimizer.momentum: adamw does not take it"),
    ("optimizer.params=3", "optimizer.params: adamw does not take it"),
    ("optimizer=lbfgs", "several times per step"),
    ("optimizer=sparseadam", "sparse gradients only"),
    ("schedule=cosin", "did you mean 'cosine'?"),
    ("schedule.warmup_step=3", "did you mean 'warmup_steps'?"),
    ("schedule=factor schedule.final_lr=0", "schedule.final_lr: factor does not take it"),
    ("loss=cross_entrpy", "did you mean 'cross_entropy'?"),
]
WRONG_VALUES = [
    ("data.root=/nonexistent", "data.root=/nonexistent"),
    ("model.width=3", "model small_cnn cannot be made"),
    ("optimizer.weight_decay=-1", "optimizer AdamW: Invalid weight_decay"),
    ("optimizer.eps=abc", "optimizer AdamW"),
    ("optimizer=muon", "optimizer Muon"),
    ("schedule=factor", "also needs factor"),
    ("schedule=multi_factor schedule.factor=0.5 schedule.step=a", "MultiFactorScheduler needs a list"),
    ("schedule.max_update=4 schedule.warmup_steps=4", "schedule.warmup_steps=4: must be less than schedule.max_update"),
    ("epochs=1 schedule.warmup_steps=3", "must be less than the whole training, which is 3 step(s)"),
]


@pytest.mark.parametrize(("settings", "answer"), WRONG_NAMES, ids=[item[0] for item in WRONG_NAMES])
def test_a_wrong_name_is_found_without_building(settings, answer):
    config = load(
        "digits", overrides=["optimizer=adamw", *settings.split()] if "optimizer=" not in settings else settings.split()
    )
    with pytest.raises(ConfigError) as caught:
        check_names(config)
    assert answer in str(caught.value)


@pytest.mark.parametrize(("settings", "answer"), WRONG_VALUES, ids=[item[0] for item in WRONG_VALUES])
def test_a_value_that_its_object_refuses_is_an_input_error(settings, answer):
    config = load(
        "digits", overrides=["optimizer=adamw", *settings.split()] if "optimizer=" not in settings else settings.split()
    )
    check_names(config)
    with pytest.raises((ConfigError, DataError)) as caught:
        build(config)
    assert isinstance(caught.value, InputError)
    assert answer in str(caught.value)


def test_the_schemas_own_defaults_build():
    assert build(Config()).schedule is None


def test_a_model_that_does_not_fit_the_images_is_refused_before_anything_is_made():
    with pytest.raises(
        ConfigError, match=r"model\.name=lenet: it cannot take the samples of digits, of shape \(1, 8, 8\)"
    ):
        build(load("digits", overrides=["model=lenet"]))
