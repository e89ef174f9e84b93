import random

import numpy as np
import pytest
import torch

from wholebatch.core.errors import ConfigError, DataError, InputTypeError, PromiseWarning
from wholebatch.data import PerBatch, PerSample, by_path

IMAGES = torch.zeros(6, 1, 2, 2)
PLACE = {"seed": 1, "epoch": 2, "indices": torch.arange(6)}
DRAWS = {
    "torch": lambda image: image + torch.rand(1),
    "numpy": lambda image: image + np.random.rand(),
    "python": lambda image: image + random.random(),
}


@pytest.mark.parametrize("source", list(DRAWS))
def test_each_generator_is_seeded_by_sample_and_given_back(source):
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    transform = PerSample(DRAWS[source])
    new = transform(IMAGES, **PLACE)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == expected
    assert len(new.flatten(1)[:, 0].unique()) == 6
    assert torch.equal(transform(IMAGES[4:], **{**PLACE, "indices": torch.arange(4, 6)}), new[4:])


def test_generators_are_given_back_after_an_error():
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    with pytest.raises(DataError, match=r"broken failed on sample 0 \(float32\(1, 2, 2\)\): ZeroDivisionError"):
        PerSample(lambda image: 1 / 0, name="broken")(IMAGES, **PLACE)
    with pytest.raises(DataError, match=r"broken failed on \(6, 1, 2, 2\): ZeroDivisionError"):
        PerBatch(lambda images: 1 / 0, name="broken")(IMAGES, **PLACE)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


@pytest.mark.parametrize("source", list(DRAWS))
def test_a_batch_that_draws_is_said_once(source):
    transform = PerBatch(DRAWS[source], name="noisy")
    with pytest.warns(PromiseWarning, match="noisy draws for a micro-batch at once") as said:
        twice = [transform(IMAGES, **PLACE) for _ in range(2)]
    assert torch.equal(*twice)
    assert len(said) == 1


def test_a_batch_that_draws_nothing_is_not_warned_of():
    assert torch.equal(PerBatch(torch.neg)(IMAGES + 1, **PLACE), -IMAGES - 1)


def test_one_image_as_a_batch_of_one_is_taken():
    assert PerSample(lambda image: image.unsqueeze(0))(IMAGES, **PLACE).shape == IMAGES.shape


@pytest.mark.parametrize(
    ("transform", "answer"),
    [
        (PerSample(lambda image: 3, name="f"), "f gave a int for sample 0"),
        (PerSample(lambda image: image[..., : random.randrange(1, 3)], name="f"), "f gave images of several shapes"),
        (PerBatch(lambda images: images[1:], name="f"), r"f got images \(6, 1, 2, 2\) and gave \(5, 1, 2, 2\)"),
    ],
)
def test_what_comes_back_is_looked_at(transform, answer):
    with pytest.raises(DataError, match=answer):
        transform(IMAGES, **PLACE)


def test_what_cannot_be_called():
    with pytest.raises(InputTypeError, match="a transform is a callable, got 3"):
        PerSample(3)


def test_by_import_path():
    images = torch.arange(24.0).view(6, 1, 2, 2)
    flip = by_path("torch:flip", dims=[-1])
    assert torch.equal(flip(images, **PLACE), images.flip(-1))
    assert repr(flip) == "PerSample(torch:flip(dims=[-1]))"
    relu = by_path("torch.nn:ReLU", "batch")
    assert isinstance(relu, PerBatch)
    assert torch.equal(relu(images - 9, **PLACE), torch.relu(images - 9))
    assert by_path("torch:neg")(images, **PLACE).max() == 0
    with pytest.raises(ConfigError, match="torch has no 'filp'; did you mean 'flip'"):
        by_path("torch:filp")
    with pytest.raises(ConfigError, match=r"torch\.nn:ReLU does not take inplce; did you mean 'inplace'"):
        by_path("torch.nn:ReLU", inplce=True)
    with pytest.raises(InputTypeError, match="a transform is a callable"):
        by_path("torch:pi")
