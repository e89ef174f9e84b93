import numpy as np
import pytest

from wholebatch.display.braille import Canvas
from wholebatch.display.chart import Chart, Line, Panel
from wholebatch.display.look import style
from wholebatch.display.text_chart import plain_rows, styled_rows, text_chart, ticks


def _chart(*ys, x=None, **options):
    lines = [
        Line(f"line{i}", np.arange(len(y), dtype=float) if x is None else x, np.array(y)) for i, y in enumerate(ys)
    ]
    return Chart([Panel("loss", lines, **options)], "step", "A title", whole_x=True)


def test_dots_are_where_the_standard_says():
    for (x, y), code in {
        (0, 3): 1,
        (0, 2): 2,
        (0, 1): 4,
        (1, 3): 8,
        (1, 2): 16,
        (1, 1): 32,
        (0, 0): 64,
        (1, 0): 128,
    }.items():
        canvas = Canvas(1, 1)
        canvas.dot(x, y)
        assert canvas.text() == [chr(0x2800 + code)]


def test_a_dot_outside_is_left_out():
    canvas = Canvas(2, 2)
    for place in [(-1, 0), (0, -1), (4, 0), (0, 8)]:
        canvas.dot(*place)
    assert canvas.text() == ["  ", "  "]


def test_a_gap_is_not_bridged():
    canvas = Canvas(4, 1)
    canvas.path([(0, 0), (1, 0), None, (6, 0), (7, 0)])
    assert canvas.text() == ["⣀  ⣀"]


def test_a_chart_as_a_whole():
    rows = plain_rows(text_chart(_chart([0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]), 30, 12))
    assert rows[0:3] == ["A title", "loss", "a: line0 3   b: line1 0"]
    assert len(rows) <= 12
    assert max(map(len, rows)) <= 30
    assert rows[3].startswith("3 ┤")
    assert rows[3].endswith("a")
    assert rows[-3].startswith("0 ┤")
    assert rows[-3].endswith("b")
    assert rows[-2].startswith("  └┬")
    assert rows[-1].split() == ["0", "1", "2", "step"]


def test_every_size_fits_or_is_empty():
    chart = Chart([*_chart([1.0, 2.0], [5.0, 3.0]).panels, *_chart([10.0, 90.0]).panels], "epoch", "t")
    for width in range(10, 120, 7):
        for height in range(1, 45):
            rows = plain_rows(text_chart(chart, width, height))
            assert len(rows) <= height
            assert max(map(len, rows), default=0) <= width
    assert [row for row in plain_rows(text_chart(chart, 60, 40)) if row == "loss"] == ["loss", "loss"]
    assert plain_rows(text_chart(chart, 60, 9)).count("loss") == 1


def test_nothing_to_see_is_nothing():
    assert text_chart(_chart(), 80, 20) == []
    assert text_chart(_chart([np.nan, np.inf]), 80, 20) == []


def test_ascii_alone():
    rows = plain_rows(text_chart(_chart([0.0, 2.0, 1.0]), 60, 15, braille=False))
    assert "".join(rows).isascii()
    assert sum(row.count("*") for row in rows) > 30


def test_many_lines_do_not_push_the_chart_away():
    rows = plain_rows(text_chart(_chart(*[[float(i), 0.0] for i in range(60)]), 60, 20))
    assert any(row.startswith("and ") and row.endswith(" more") for row in rows)
    assert len(rows) <= 20


def test_lines_have_colours_and_letters():
    rows = styled_rows(text_chart(_chart([0.0, 1.0], [1.0, 1.0]), 60, 15))
    assert {span.style for row in rows for span in row.spans} == {"#56B4E9", "#E69F00"}


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 1.0, 5, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (33.0, 90.0, 3, ["40", "60", "80"]),
        (21.0, 90.0, 3, ["40", "60", "80"]),
        (0.0, 1e6, 4, ["0", "500,000", "1,000,000"]),
        (0.0, 2e-6, 2, ["0", "1e-06", "2e-06"]),
        (-1.0, 1.0, 4, ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        (1e9, 3e9, 2, ["1e+09", "2e+09", "3e+09"]),
    ],
)
def test_numbers_on_an_axis_are_round(low, high, count, expected):
    assert [label for _, label in ticks(low, high, count)] == expected


def test_numbers_on_a_logarithmic_axis():
    assert [label for _, label in ticks(1e-3, 1e3, 7, log=True)] == ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]
    assert len(ticks(1e-12, 1e12, 4, log=True)) <= 5
    assert [label for _, label in ticks(2.0, 5.0, 4, log=True)] == ["2", "5"]
    rows = plain_rows(text_chart(_chart([1.0, 100.0, 0.0], yscale="log"), 60, 15))
    assert rows[1] == "loss (log scale)"


def test_a_line_out_of_sight_has_no_letter():
    rows = plain_rows(text_chart(_chart([0.0, 9.0], ylim=(0.0, 1.0)), 40, 12))
    assert not any(row.endswith("a") for row in rows[2:])


def test_control_characters_of_a_label_steer_no_terminal():
    line = Line("a\x1b[31m\nb", np.arange(2.0), np.arange(2.0))
    assert "\x1b" not in "".join(plain_rows(text_chart(Chart([Panel("y\x1b", [line])], "x\x1b", "t\x1b"), 60, 20)))


def test_styles_differ_in_more_than_colour():
    assert len({style(i)["linestyle"] for i in range(4)}) == 4
    assert len({(style(i)["color"], style(i)["linestyle"]) for i in range(28)}) == 28
