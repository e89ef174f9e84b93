"""Every Python example of the README and of docs/ runs, and the command line answers as its page says.

Write its answers anew with: python tests/unit/test_docs.py
"""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import wholebatch as wb
from wholebatch.cli.main import main
from wholebatch.config import load

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
    if page.name == "bridges.md":
        pytest.skip("its packages are no dependencies; tests/unit/test_bridges.py runs it where they are installed")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for line, source in blocks(page, "python"):
        if "from transformers" in source and importlib.util.find_spec("transformers") is None:
            continue  # tests/unit/test_bert_style.py says so
        if source.startswith(">>>"):
            example = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), line)
            runner.run(example, out=said.append, clear_globs=False)
            names.update(example.globs)
        else:
            exec(compile("\n" * line + source, str(page), "exec"), names)
    assert not said, "".join(said)


def answer(command: str) -> str:
    """What the command line prints."""
    program, *words = shlex.split(command.removeprefix("$ "))
    assert program == "wholebatch"
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        main(words)
    return said.getvalue()


MINE = "batch_size: 256\noptimizer:\n  name: sgd\n  momentum: 0.9\n"


@pytest.mark.parametrize("page", with_blocks("console"), ids=lambda page: page.name)
def test_commands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE)
    for line, source in blocks(page, "console"):
        command, _, expected = source.partition("\n")
        repair = "if the new answer is right, write it with: python tests/unit/test_docs.py"
        assert answer(command) == expected, f"{page.name}:{line}: {repair}"


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^  ([a-z_]+(?:/|\.py)) ", text, re.MULTILINE))
    source = ROOT / "src" / "wholebatch"
    there = {f"{path.parent.name}/" for path in source.glob("*/__init__.py")} | {p.name for p in source.glob("*.py")}
    there -= {"__init__.py", "__main__.py", "version.py"}
    assert listed == there, "a line per folder: correct the tree in README.md (and the one in docs/architecture.md)"


ROW = {
    "last micro-batch has 1 sample": [4, 4, 4, 1],
    "last window has 2 of 4": [4, 4],
    "valid tokens 4, 3, 2, 1": [4, 3, 2, 1],
}


@pytest.mark.parametrize("valid", ROW.values(), ids=list(ROW))
def test_our_row_of_the_readme(valid: list[int]) -> None:
    """Micro-batches of up to 4 samples of which ``valid`` count, against the mean over all that count."""
    short = valid[-1] == 1 and sum(valid) == 13
    sizes = valid if short else [4] * len(valid)
    inputs = torch.randn(sum(sizes), 8, dtype=torch.float64)
    targets = torch.arange(len(inputs)) % 3
    for place, (size, count) in enumerate(zip(sizes, valid, strict=True)):
        targets[sum(sizes[:place]) + count : sum(sizes[:place]) + size] = -100
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    exact = -0.1 * torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    step = wb.Step(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), micro_batch=4)
    assert step((inputs, targets)).micro_batches == len(valid)
    update = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert (update - exact).abs().max() < 1e-14 * exact.abs().max()


def test_the_layers_of_the_page_are_those_that_are_kept() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    kept = [set(layer.replace("wholebatch.", "").split(" | ")) for layer in contract["contracts"][0]["layers"]]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [set(line.split()) for line in page.split("```")[1].splitlines() if line.strip(" ↓")]
    assert drawn == [layer for layer in kept if not layer & {"__main__", "version"}]
    for layer in drawn:
        for package in layer:
            assert f"| `{package}` |" in page, f"docs/architecture.md says nothing about {package}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def write() -> None:
    """Put what the command line answers now into the pages."""

    def asked(found: re.Match[str]) -> str:
        command = found[2].partition("\n")[0]
        return f"```console\n{command}\n{answer(command)}```" if found[1] == "console" else found[0]

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("mine.yaml").write_text(MINE)
        for page in with_blocks("console"):
            page.write_text(BLOCK.sub(asked, page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write()


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= set(index.splitlines())


@pytest.mark.parametrize("page", with_blocks("bash"), ids=lambda page: page.name)
def test_shell_scripts_can_be_read(page: Path) -> None:
    for line, source in blocks(page, "bash"):
        done = subprocess.run(["bash", "-n"], input=source, text=True, capture_output=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, ""), f"{page.name}:{line}"


@pytest.mark.parametrize("page", with_blocks("yaml"), ids=lambda page: page.name)
def test_yaml_can_be_read(page: Path) -> None:
    for line, source in blocks(page, "yaml"):
        assert all(isinstance(part, dict) for part in yaml.safe_load_all(source)), f"{page.name}:{line}"


def test_the_kubernetes_example_is_of_one_piece() -> None:
    (_, source), *_ = blocks(ROOT / "docs" / "processes.md", "yaml")
    service, job = yaml.safe_load_all(source)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert int(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert service["metadata"]["name"] == pod["subdomain"]  # so that the first pod has a name
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    name = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert f"--rdzv-endpoint={name}:29400" in container["command"]
    words = container["command"]
    settings = words[words.index("train") + 1 :]
    assert load("digits", overrides=settings).checkpoint_every == "5 min"
