"""A confusion matrix as a picture."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from wholebatch.display.confusion import confusion_figure, confusion_picture


def matrix(classes):
    counts = np.random.default_rng(0).integers(0, 3, (classes, classes))
    counts[np.arange(classes), np.arange(classes)] += 50
    return counts


def parts(counts, names, **rest):
    figure = confusion_figure(counts, names, **rest)
    axes, bar = figure.axes
    return axes, bar, {tuple(text.get_position()): text for text in axes.texts}


def test_rows_are_true_columns_predicted_and_colours_are_shares_of_the_row():
    counts = np.array([[3, 1, 0], [0, 1000, 0], [0, 0, 0]])
    axes, bar, texts = parts(counts, ["ant", "bee", "cat"], title="run: accuracy 1")
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "predicted class")
    assert axes.get_title() == "run: accuracy 1"
    assert "share of the true class" in bar.get_ylabel()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat"]
    shares = axes.images[0].get_array()
    assert shares.tolist() == [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]]  # a class without samples is empty
    found = {place: text.get_text() for place, text in texts.items()}
    assert found == {(0, 0): "3", (1, 0): "1", (1, 1): "1,000"}  # (column, row)


def test_numbers_can_be_read_on_their_cells():
    axes, _, texts = parts(np.array([[9, 1], [0, 10]]), ["a", "b"])
    drawn = axes.images[0]
    for (column, row), text in texts.items():
        red, green, blue, _ = drawn.cmap(drawn.norm(drawn.get_array()[int(row), int(column)]))
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        assert (text.get_color() == "white") == (light < 0.5)


@pytest.mark.parametrize(("classes", "numbers"), [(10, True), (25, True), (26, False), (100, False)])
def test_counts_stand_where_they_fit(classes, numbers):
    axes, _, texts = parts(matrix(classes), [f"class {i}" for i in range(classes)])
    assert bool(texts) == numbers
    assert len(axes.get_yticklabels()) == len(axes.get_xticklabels()) == classes


def test_of_a_thousand_classes_some_are_named_at_their_places():
    axes, *_ = parts(matrix(1000), [f"n{i}" for i in range(1000)])
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"n{place}" for place in axes.get_yticks()]
    assert 20 <= len(axes.get_yticks()) <= 40


def test_names_are_plain_text_of_any_script_and_length():
    names = ["$x_1$", "猫", "a\nb", "very long name of a class that goes on"]
    axes, *_ = parts(matrix(4), names)
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == [r"\$x_1\$", "猫", "a b", "very long name of…"]
    picture = Image.open(io.BytesIO(confusion_picture(matrix(4), names, title="$")))
    assert (picture.format, min(picture.size) > 300) == ("PNG", True)
