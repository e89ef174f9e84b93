"""A notebook executed by nbclient, in a process of its own."""

import base64
import importlib.util
import json
import os
import subprocess
import sys

import pytest

MISSING = [name for name in ("nbclient", "ipykernel") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

RUN = """
import json, os, sys, tempfile
from pathlib import Path
import nbclient, nbformat
cells = json.load(sys.stdin)
with tempfile.TemporaryDirectory() as folder:
    kernel = Path(folder) / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x", "language": "python"}))
    os.environ["JUPYTER_PATH"] = folder
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
print(json.dumps([cell.outputs for cell in notebook.cells]))
"""

CELLS = {
    "imports": "import math, threading, torch\nimport wholebatch as wb",
    "made": "plot = wb.LivePlot('step', 'loss (nats)', ['train', 'test'], title='by hand')",
    "fed": "for i in range(300): plot.add(i, 1 / (i + 1), 2 / (i + 1))",
    "fed from a thread": (
        "def work():\n    for i in range(300, 3000): plot.add(i, math.sin(i / 300), None)\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()"
    ),
    "closed": "plot.close()\nprint(len(plot.points('train')[0]))",
    "train": (
        "model = wb.models.build('mlp', num_classes=10, in_channels=1, image_size=8, seed=0)\n"
        "history = wb.train(model, wb.data.digits('train'), loss=torch.nn.CrossEntropyLoss(), display=False,\n"
        "    optimizer=lambda p: torch.optim.SGD(p, lr=0.1), epochs=2, observers=[wb.LivePlot()])"
    ),
    "not closed": "short = wb.LivePlot()\nfor i in range(50): short.add(i, 0.5)",
    "closed at once": "with wb.LivePlot() as whole:\n    for i in range(50): whole.add(i, 0.5)",
    "last value": "wb.plot([1, 2, 3], {'a': [1, 2, 3], 'b': [3, 2, 1]}, 'epoch')",
    "kept": "figure = wb.plot(wb.CosineScheduler(20, 0.3, 0.01, 5))",
    "asked again": "figure",
    "run twice": (
        "code = 'again.add(1, 1.0); again.add(2, 2.0)'\nagain = wb.LivePlot(path='a.png')\n"
        "shell = get_ipython()\nshell.get_parent = lambda: {'metadata': {'cellId': 'x'}, 'header': {'msg_id': run}}\n"
        "for run in '12':\n    exec(code)\n    again.flush()\n"
    ),
    "a path": "import os\nprint(os.listdir())\nagain.close()",
    "figures": "import sys\nprint(getattr(sys.modules.get('matplotlib.pyplot'), 'get_fignums', list)())",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of every cell, by the cell's name."""
    environment = {**os.environ, "JUPYTER_PLATFORM_DIRS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN],
        input=json.dumps(list(CELLS.values())),
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("notebook"),
        env=environment,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CELLS, json.loads(done.stdout), strict=True))


def pictures(outputs):
    assert all("image/png" in output.get("data", {}) for output in outputs)
    return [base64.b64decode(output["data"]["image/png"]) for output in outputs]


def test_one_output_changes_in_place(outputs):
    (picture,) = pictures(outputs["fed"])
    assert picture.startswith(b"\x89PNG")
    assert outputs["fed"][0]["metadata"]["image/png"]["alt"] == "by hand: train, test"
    assert outputs["made"] == outputs["fed from a thread"] == []
    assert [output["text"] for output in outputs["closed"]] == ["3000\n"]


def test_a_training_has_one_output(outputs):
    assert len(pictures(outputs["train"])) == 1


def test_what_came_last_is_drawn_when_the_cell_ends(outputs):
    assert pictures(outputs["not closed"]) == pictures(outputs["closed at once"])


def test_a_plot_is_shown_once_in_its_cell_and_again_where_it_is_asked_for(outputs):
    for name in ("last value", "kept", "asked again"):
        assert len(pictures(outputs[name])) == 1, name
    assert outputs["kept"][0]["data"]["image/png"] == outputs["asked again"][0]["data"]["image/png"]


def test_a_cell_that_runs_again_gets_its_output_again(outputs):
    assert len(pictures(outputs["run twice"])) == 2


def test_a_path_is_written_in_a_notebook_as_well(outputs):
    assert "a.png" in outputs["a path"][0]["text"]


def test_pyplot_keeps_no_figure(outputs):
    assert outputs["figures"][0]["text"] == "[]\n"
