"""Every Python example of the README and of docs/ runs, and the command line answers as its page says."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from wholebatch.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The (line, text) of each block of a language."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if found[1] == language:
            yield text.count("\n", 0, found.start()) + 1, found[2]


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if next(blocks(page, language), None)]


@pytest.mark.parametrize("page", with_blocks("python"), ids=lambda page: page.name)
def test_python_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for line, source in blocks(page, "python"):
        if source.startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), line)
            runner.run(example, out=said.append, clear_globs=False)
            names.update(example.globs)
        else:
            exec(compile("\n" * line + source, str(page), "exec"), names)
    assert not said, "".join(said)


@pytest.mark.parametrize("page", with_blocks("console"), ids=lambda page: page.name)
def test_commands(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("batch_size: 256\noptimizer:\n  name: sgd\n  momentum: 0.9\n")
    for line, source in blocks(page, "console"):
        command, _, expected = source.partition("\n")
        words = shlex.split(command.removeprefix("$ "))
        assert words.pop(0) == "wholebatch", f"{page.name}:{line}"
        with pytest.raises(SystemExit):
            main(words)
        said = capsys.readouterr()
        pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
        assert re.fullmatch(pattern, (said.out + said.err).strip(), re.DOTALL), f"{page.name}:{line}:\n{said}"


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ([a-z_]+)(?:/|\.py) ", text, re.MULTILINE))
    there = {
        path.stem for path in (ROOT / "src" / "wholebatch").iterdir() if path.name[0] not in "_." and path.stem != "py"
    }
    assert listed == {name for name in there if name != "version"}


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
