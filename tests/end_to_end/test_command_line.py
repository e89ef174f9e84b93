"""The command line as people start it: a process of its own, its output, its exit code, and what it leaves."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "wholebatch"]
ESCAPE = b"\x1b["


@pytest.fixture
def environment():
    kept = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "CI", "COLUMNS", "FORCE_COLOR")
    }
    return {**kept, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def run(environment, folder, *words):
    return subprocess.run([*PROGRAM, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=100)


def records(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_train_then_evaluate_through_a_pipe(environment, tmp_path):
    done = run(environment, tmp_path, "train", "epochs=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout
    first, second, noise, promise, last = done.stdout.splitlines()
    assert ("1/2" in first, "2/2" in second, "gradient noise scale" in noise) == (True, True, True)
    assert float(promise.split(" by ")[1].split()[0]) < 1e-5
    folder = Path(last.removeprefix("run: "))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]

    done = run(environment, tmp_path, "evaluate", str(folder))
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(line.split() for line in done.stdout.split("\n\n")[0].splitlines())
    assert found["accuracy"] == f"{records(tmp_path / folder)[-1]['accuracy']:.6g}"
    assert found["samples"] == "360"


@pytest.mark.parametrize("color", [True, False])
def test_train_on_a_terminal(environment, tmp_path, color):
    main, other = pty.openpty()
    extra = {} if color else {"NO_COLOR": "1"}
    process = subprocess.Popen(
        [*PROGRAM, "train", "epochs=2", "run_dir=run"],
        cwd=tmp_path, env={**environment, **extra}, stdin=other, stdout=other, stderr=other,
    )  # fmt: skip
    os.close(other)
    try:
        shown = read_all(main, until=time.monotonic() + 100)
        assert process.wait(timeout=20) == 0, shown
    finally:
        process.kill()
        process.wait()
        os.close(main)
    assert ESCAPE in shown  # it is live: the cursor moves
    colors = [f"\x1b[{code}m".encode() for code in (*range(31, 38), *(f"1;{c}" for c in range(31, 38)))]
    assert any(code in shown for code in colors) == color
    assert shown.rstrip().endswith(b"run: run")
    assert shown.rfind(b"\x1b[?25h") >= shown.rfind(b"\x1b[?25l")  # the cursor is shown again


def read_all(descriptor, until):
    shown = b""
    while time.monotonic() < until:
        if not select.select([descriptor], [], [], 1.0)[0]:
            continue
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    return shown


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_in_the_middle_leaves_a_run_that_can_be_read(environment, tmp_path, number, code, said):
    process = subprocess.Popen(
        [*PROGRAM, "train", "epochs=100000", "run_dir=run", "schedule=constant"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "1/100000" in process.stdout.readline()
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    assert errors == f"wholebatch: {said}\n"
    assert output.splitlines()[-1] == "saved; go on with: wholebatch train --resume run"
    assert records(tmp_path / "run")[0]["epoch"] == 1
    assert (tmp_path / "run" / "curves.svg").read_bytes().rstrip().endswith(b"</svg>")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "config.yaml", "history.jsonl", "curves.png", "curves.svg", "checkpoints", "inputs.json",
    }  # fmt: skip
    if number == signal.SIGINT:  # the rest takes time, and is the same
        return
    done = run(environment, tmp_path, "evaluate", "run")
    assert (done.returncode, done.stderr) == (0, "")
    done = run(environment, tmp_path, "train", "--resume", "run", "time_limit=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "saved; go on with: wholebatch train --resume run"
    done = run(environment, tmp_path, "train", "--resume", "run", "seed=5")
    assert done.returncode == 2
    assert "seed was 0 and is now 5" in done.stderr
    epochs = [record["epoch"] for record in records(tmp_path / "run") if record["split"] == "test"]
    assert epochs == list(range(1, len(epochs) + 1))


@pytest.mark.parametrize(("number", "code", "whom"), [(signal.SIGTERM, 143, "launcher"), (signal.SIGINT, 130, "rank")])
def test_a_signal_to_one_of_several_processes_ends_them_all(environment, tmp_path, number, code, whom):
    words = ["train", "epochs=100000", "run_dir=run", "schedule=constant", "--processes", "2"]
    process = subprocess.Popen(
        [*PROGRAM, *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert "1/100000" in process.stdout.readline()
        ranks = ranks_of(process.pid)
        assert len(ranks) == 2
        os.kill(process.pid, signal.SIGUSR1)
        while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
            time.sleep(0.01)
        assert process.poll() is None
        os.kill(process.pid if whom == "launcher" else ranks[1], number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert output.splitlines()[-1] == "saved; go on with: wholebatch train --resume run"
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]


def ranks_of(pid):
    """The processes that a launcher started to train."""
    children = [
        int(child) for listed in Path(f"/proc/{pid}/task").glob("*/children") for child in listed.read_text().split()
    ]
    return sorted(child for child in children if b"LOCAL_RANK=" in Path(f"/proc/{child}/environ").read_bytes())


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "run_dir=/proc/none/run"], "run folder '/proc/none/run' cannot be written"),
        (["train", "batch_size=0"], "batch_size=0"),
        (["train", "batchsize=8"], "batch_size"),
        (["evaluate", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(environment, tmp_path, words, named):
    done = run(environment, tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert named in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read(environment, tmp_path):
    tmp_path.chmod(0o500)
    try:
        done = run(environment, tmp_path, "train", "epochs=1")
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert "run_dir=" in done.stderr
    assert len(done.stderr.splitlines()) == 1
