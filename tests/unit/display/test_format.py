import pytest

from wholebatch.display import format as text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0009999, "1.00e-03"),
        (0.001, "0.0010"),
        (-0.5, "-0.5000"),
        (999.9999, "999.9999"),
        (1000, "1,000.0"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
        ("word", "?"),
        ([], "?"),
    ],
)
def test_number(value, expected):
    assert text.number(value) == expected


def test_percent_keeps_its_width_below_one_hundred():
    assert {len(text.percent(value)) for value in (0, 0.05, 0.5, 0.99994)} == {7}
    assert text.percent(0.99999) == "100.00 %"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 s"), (59.4, "59 s"), (59.5, "1:00"), (3599.6, "1:00:00"), (86399.7, "1 d 00:00"), (-1, "?")],
)
def test_seconds_round_before_they_are_split(value, expected):
    assert text.seconds(value) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "x"])
def test_what_is_no_number_is_a_question_mark(value):
    assert text.seconds(value) == text.rate(value) == text.short_rate(value) == "?"
