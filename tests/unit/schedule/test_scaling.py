"""Batch-size rules."""

import math

import pytest

from wholebatch.core.errors import ConfigError, InputTypeError
from wholebatch.schedule import scale_lr


def test_linear_and_square_root():
    assert scale_lr(0.1, batch_size=4096, reference=256, rule="linear") == 1.6
    assert scale_lr(0.1, batch_size=4096, reference=256, rule="sqrt") == 0.4
    assert scale_lr(0.1, batch_size=64) == 0.025
    assert scale_lr(1e-3, batch_size=96, reference=32, rule="sqrt") == pytest.approx(1e-3 * math.sqrt(3), rel=1e-15)


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
def test_the_reference_keeps_its_rate_exactly(rule):
    assert scale_lr(0.3, batch_size=7, reference=7, rule=rule) == 0.3


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'linear'.*linear, sqrt"):
        scale_lr(0.1, batch_size=512, rule="linaer")


@pytest.mark.parametrize("name", ["lr", "batch_size", "reference"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
def test_numbers_that_cannot_be_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"scale_lr got {name}="):
        scale_lr(**{"lr": 0.1, "batch_size": 512, "reference": 256, name: value})


@pytest.mark.parametrize("name", ["batch_size", "reference"])
def test_a_batch_of_nothing_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0"):
        scale_lr(**{"lr": 0.1, "batch_size": 512, "reference": 256, name: 0})


def test_what_is_no_number_is_refused():
    with pytest.raises(InputTypeError, match="lr"):
        scale_lr("0.1", batch_size=512)
