"""The examples of docs/schedules.md give what the page says."""

import doctest
from pathlib import Path

from wholebatch.schedule import SHAPES

PAGE = Path(__file__).parents[3] / "docs" / "schedules.md"


def test_every_example_is_true():
    # A closing fence right below an output would be read as part of it.
    text = "".join(
        "\n" if line.startswith("```") else line for line in PAGE.read_text("utf-8").splitlines(keepends=True)
    )
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    result = doctest.DocTestRunner(verbose=False).run(examples)
    assert result.attempted > 20
    assert result.failed == 0


def test_every_shape_has_its_section():
    text = PAGE.read_text("utf-8")
    for name, kind in SHAPES.items():
        assert f"`{name}`" in text
        assert kind.__name__ in text
