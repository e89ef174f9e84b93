"""data.normalize and data.augment, from words to transforms."""

from __future__ import annotations

import pytest
import torch

from wholebatch.config import load, to_yaml
from wholebatch.config.build import build
from wholebatch.config.check import check
from wholebatch.config.transforms import mixing, normalizing, training
from wholebatch.core.errors import ConfigError, DataError
from wholebatch.data import (
    ArrayDataset,
    ColorJitter,
    Compose,
    Cutout,
    HorizontalFlip,
    Mix,
    Normalize,
    PerBatch,
    PerSample,
    RandomCrop,
    RandomResizedCrop,
    ShiftRotate,
    channel_statistics,
)

BYTES = torch.randint(0, 256, (40, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
DATA = ArrayDataset(BYTES, torch.arange(40) % 4, classes="abcd")


def settings(*overrides):
    return load("digits", overrides=["data.augment=null", *(f"data.{override}" for override in overrides)])


EVERY = [
    "augment.random_resized_crop=0.3",
    "augment.crop_padding=4",
    "augment.crop_mode=reflect",
    "augment.flip=true",
    "augment.callable=torch:roll",
    "augment.callable_arguments={shifts: 1, dims: -1}",
    "augment.color_jitter=[0.1, 0.2, 0.3, 0.4]",
    "augment.max_shift=2",
    "augment.cutout=3",
]


def test_every_key_makes_its_transform_in_this_order():
    made = training(settings(*EVERY), Normalize())
    kinds = [RandomResizedCrop, RandomCrop, HorizontalFlip, PerSample, ColorJitter, ShiftRotate, Cutout, Normalize]
    assert [type(step) for step in made.transforms] == kinds
    resized, crop, _, roll, colour, shift, cutout, _ = made.transforms
    assert (resized.scale, crop.padding, crop.mode, shift.max_shift, cutout.size) == ((0.3, 1.0), 4, "reflect", 2.0, 3)
    assert (colour.brightness, colour.contrast, colour.saturation, colour.hue) == (0.1, 0.2, 0.3, 0.4)
    assert repr(roll) == "PerSample(torch:roll(shifts=1, dims=-1))"
    images, _ = made((BYTES, DATA.targets), seed=0, epoch=0, indices=torch.arange(40))
    assert images.shape == BYTES.shape
    assert images.dtype == torch.float32
    again = settings(*EVERY)
    assert repr(training(load("digits", overrides=to_lines(again)), Normalize())) == repr(made)


def to_lines(config):
    """What its YAML says of augmentation, as settings."""
    lines = [line.strip() for line in to_yaml(config).partition("  augment:\n")[2].partition("model:")[0].splitlines()]
    return [f"data.augment.{key}={value}" for key, _, value in (line.partition(": ") for line in lines)]


def test_nothing_is_on_by_itself():
    assert training(settings(), None) is None
    last = Normalize()
    assert training(settings(), last) is last
    assert mixing(settings(), 10) is None
    digits = build(load("digits"))
    assert [type(step) for step in digits.train_transform.transforms] == [ShiftRotate, Normalize]
    assert digits.mix is None
    assert digits.normalize == "auto"


def test_colours_know_the_largest_value():
    digits = build(settings("augment.color_jitter=[0.1, 0.1, 0.1]"))
    assert digits.train_transform.transforms[0].top == 16
    assert training(settings("augment.color_jitter=[0.1, 0.1, 0.1]"), None).transforms[0].top == 255


def test_per_batch():
    made = training(settings("augment.callable=torch:neg", "augment.callable_per=batch"), None)
    assert isinstance(made.transforms[0], PerBatch)


def test_mixing():
    both = mixing(settings("augment.mixup=0.2", "augment.cutmix=1"), 7)
    assert isinstance(both, Mix)
    assert (both.num_classes, both.mixup, both.cutmix) == (7, 0.2, 1.0)
    assert build(settings("augment.cutmix=1")).mix.num_classes == 10


def test_statistics_are_computed_where_the_data_have_none():
    found = channel_statistics(DATA)
    transform, kept = normalizing(settings(), DATA)
    assert kept == {"mean": list(found.mean), "std": list(found.std)}
    assert (transform.mean, transform.std, transform.scale) == (found.mean, found.std, 1 / 255)
    images = transform(BYTES, seed=0, epoch=0, indices=torch.arange(40))
    assert images.mean((0, 2, 3)).abs().max() < 1e-6
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-6
    config = settings(f"normalize={{mean: {kept['mean']}, std: {kept['std']}}}")
    again, same = normalizing(config, DATA)
    assert same == kept
    assert repr(again) == repr(transform)


def test_what_is_said_comes_before_what_the_data_set_does():
    own = ArrayDataset(BYTES, DATA.targets, classes="abcd", transform=Normalize(0.1, 0.2, scale=1 / 16))
    assert normalizing(settings(), own) == (own.transform, "auto")
    said, _ = normalizing(settings("normalize={mean: 0.5, std: 0.5}"), own)
    assert (said.mean, said.std, said.scale) == (0.5, 0.5, 1 / 16)
    said, _ = normalizing(settings("normalize.mean=0.5", "normalize.std=0.5"), own)
    assert (said.mean, said.std) == (0.5, 0.5)
    nothing, kept = normalizing(settings("normalize=null"), own)
    assert (nothing.mean, nothing.std, nothing.scale, kept) == (0.0, 1.0, 1 / 16, None)


def test_floats_are_left_as_they_are():
    floats = ArrayDataset(BYTES / 255, DATA.targets, classes="abcd")
    assert normalizing(settings(), floats) == (None, "auto")
    assert normalizing(settings("normalize=null"), floats) == (None, None)


def test_a_later_layer_replaces_statistics(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {normalize: {mean: [0.5], std: [0.5]}}\n")
    assert load("digits", files=[tmp_path / "mine.yaml"]).data.normalize == {"mean": [0.5], "std": [0.5]}
    later = load("digits", files=[tmp_path / "mine.yaml"], overrides=["data.normalize=auto"])
    assert later.data.normalize == "auto"


WRONG = [
    ("augment.random_resized_crop=1.5", "a share of the area from 0"),
    ("augment.crop_padding=-1", "a number of pixels, 0 or more"),
    ("augment.crop_padding=two", "a number of pixels, 0 or more"),
    ("augment.crop_mode=mirror", "expected constant or reflect"),
    ("augment.flip=perhaps", "true or false"),
    ("augment.callable=torch.flip", "null, or package.module:name"),
    ("augment.callable_per=image", "expected sample or batch"),
    ("augment.color_jitter=[0.1]", "[brightness, contrast, saturation, hue]"),
    ("augment.color_jitter=[0.1, 0.1, 0.1, 0.6]", "the hue up to 0.5"),
    ("augment.color_jitter=[0.1, -0.1, 0.1]", "0 or more"),
    ("augment.cutout=-2", "a number of pixels"),
    ("augment.mixup=-0.1", "0 (none) or more"),
    ("augment.cutmix=.nan", "finite"),
    ("augment.cutmx=1", "did you mean 'data.augment.cutmix'"),
    ("normalize=always", "expected auto, null, or {mean: …, std: …}"),
    ("normalize=3", "expected auto"),
    ("normalize={mean: 0.5}", "expected auto"),
    ("normalize={mean: 0.5, std: 0}", "std above 0"),
    ("normalize={mean: [0.5, 0.5], std: [0.5]}", "one per channel"),
    ("normalize={mean: x, std: 1}", "numbers or lists"),
    ("normalize={mean: [], std: []}", "numbers or lists"),
]


@pytest.mark.parametrize(("setting", "answer"), WRONG, ids=[setting for setting, _ in WRONG])
def test_wrong_values(setting, answer):
    with pytest.raises(ConfigError) as caught:
        settings(setting)
    assert answer in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_callables():
    for path, answer in [("torch:filp", "did you mean 'flip'"), ("torch:pi", "a transform is a callable")]:
        with pytest.raises(ConfigError, match=rf"data.augment.callable: .*{answer}"):
            training(settings(f"augment.callable={path}"), None)


def test_channels_of_another_number_are_found_before_anything_is_made():
    with pytest.raises(DataError, match="Normalize has 3 channels"):
        build(settings("normalize={mean: [0, 0, 0], std: [1, 1, 1]}"))


def test_the_check_alone():
    check(settings(*EVERY))
    assert isinstance(training(settings(*EVERY), None), Compose)
