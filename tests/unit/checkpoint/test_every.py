"""How often: what is understood, what is refused, when it is due."""

import pytest

from wholebatch.checkpoint import Every
from wholebatch.core.errors import ConfigError, InputTypeError


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("500 steps", 500, "steps"),
        ("1 step", 1, "steps"),
        (" 500steps ", 500, "steps"),
        ("2 epochs", 2, "epochs"),
        ("1 Epoch", 1, "epochs"),
        ("30 s", 30, "seconds"),
        ("0.5 sec", 0.5, "seconds"),
        ("10 min", 600, "seconds"),
        ("1.5 h", 5400, "seconds"),
        ("2 hours", 7200, "seconds"),
    ],
)
def test_what_is_understood(text, number, unit):
    every = Every(text)
    assert (every.number, every.unit) == (number, unit)
    assert every == Every(text)
    assert repr(every) == f"Every({text!r})"


@pytest.mark.parametrize(
    "text",
    ["", "500", "steps", "every step", "0 steps", "0 s", "-5 steps", "1.5 steps", "0.5 epochs", "5 stpes", "5 days",
     "1e3 steps", "nan s", "5 steps 3", "٣ steps", 500, None, True, b"5 s", "9" * 400 + " s"],
)  # fmt: skip
def test_what_is_refused_shows_examples(text):
    with pytest.raises(ConfigError, match="'500 steps', '2 epochs', '30 s', '10 min'") as caught:
        Every(text)
    assert "checkpoint_every=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_misspelt_unit_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="no unit 'stpes'; did you mean 'steps'"):
        Every("5 stpes")


def test_steps_are_a_function_of_the_step():
    every = Every("3 steps")
    assert [step for step in range(10) if every.due(step, 1e9, epoch_end=3)] == [3, 6, 9]
    assert every.due(6, 0.0)


def test_epochs():
    every = Every("2 epochs")
    assert [epoch for epoch in range(1, 7) if every.due(epoch * 5, 1e9, epoch_end=epoch)] == [2, 4, 6]
    assert not every.due(2, 1e9)
    with pytest.raises(InputTypeError, match="epoch_end"):
        every.due(2, 1e9, epoch_end=True)


def test_times_count_from_the_last_one():
    every = Every("10 s")
    due = [seconds for seconds in (1, 9, 9.9, 10, 11, 19.9, 21, 30, 31, 75, 80, 85) if every.due(7, seconds)]
    assert due == [10, 21, 31, 75, 85]
    assert not Every("10 s").due(3, 1.0, epoch_end=1)
