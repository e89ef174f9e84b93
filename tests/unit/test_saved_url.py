"""A run at a URL goes on as one in a folder does: the same weights, the same records, refused in the same words."""

from __future__ import annotations

import json
import signal
import sys
import uuid
from pathlib import Path

import pytest
import torch

import wholebatch as wb
from wholebatch.cli.main import main
from wholebatch.core.url import Url
from wholebatch.display import read_history

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import resuming
from resuming import At, interrupted, plain, send


@pytest.fixture(scope="module")
def undisturbed():
    return resuming.train(None)


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    text = f"memory://{uuid.uuid4().hex}/run" if request.param == "memory" else f"file://{tmp_path}/run"
    yield text
    Url(text).remove()


def test_stopped_and_gone_on(url, undisturbed):
    for at in (4, 13):
        code, *_ = interrupted(0, 1, url, at, {"checkpoint_every": "3 steps"})
        assert code == 143
    code, weights, records = interrupted(0, 1, url, None, {})
    assert code == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, undisturbed[0], strict=True))
    assert resuming.same_records(records, undisturbed[1])
    assert resuming.same_records(plain(read_history(url).records), undisturbed[1])
    with pytest.raises(wb.RunFolderError, match="already holds a run"):
        resuming.train(url)


def test_the_history_is_the_checkpoints(url, undisturbed):
    """The one in the folder may be newer, older, or torn: it is for people."""
    interrupted(0, 1, url, 9, {})
    (Url(url) / "history.jsonl").write_bytes(b'{"step": 1, "loss"')
    code, _, records = interrupted(0, 1, url, None, {})
    assert code == 0
    assert resuming.same_records(records, undisturbed[1])
    assert resuming.same_records(plain(read_history(url).records), undisturbed[1])


def test_from_a_url_into_a_folder(url, tmp_path, undisturbed):
    interrupted(0, 1, url, 9, {})
    weights, records = resuming.train(tmp_path / "here", resume=url)
    assert all(torch.equal(a, b) for a, b in zip(weights, undisturbed[0], strict=True))
    assert resuming.same_records(records, undisturbed[1])
    lines = (tmp_path / "here" / "history.jsonl").read_text().splitlines()
    assert resuming.same_records(plain([json.loads(line) for line in lines]), undisturbed[1])


def test_wrong_input_leaves_nothing(url):
    with pytest.raises(wb.InputTypeError):
        resuming.train(url, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1), metrics={"a": 3})
    with pytest.raises(wb.InputError):
        resuming.train(url, loss=lambda output, target: output)
    left = [*Url(url).names(), *(Url(url) / "checkpoints").names()]
    assert left in ([], ["checkpoints"])  # a file system with folders keeps an empty one


def test_a_signal_saves(url):
    with pytest.raises(SystemExit) as stop:
        resuming.train(url, observers=[At(0, {5: send(signal.SIGUSR1), 9: send(signal.SIGINT)})])
    assert stop.value.code == 130
    assert [name[:13] for name in (Url(url) / "checkpoints").names() if name[0] == "s"] == [
        "step-00000005",
        "step-00000009",
    ]


def test_the_command_line(url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*words):
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    code, out, err = command("train", "epochs=1", "schedule=constant", f"run_dir={url}")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"run: {url}"
    assert {"config.yaml", "history.jsonl", "curves.png", "curves.svg"} <= set(Url(url).names())
    code, out, err = command("evaluate", url)
    assert (code, err) == (0, "")
    found = dict(line.split() for line in out.split("\n\n")[0].splitlines())
    assert found["accuracy"] == f"{read_history(url).last('test')['accuracy']:.6g}"
    code, out, err = command("train", "--resume", url, "epochs=2")
    assert (code, err) == (0, "")
    assert [record["epoch"] for record in read_history(url).select("train")] == [1, 2]
    code, out, err = command("train", "epochs=1", "schedule=constant", f"run_dir={url}")
    assert (code, out) == (2, "")
    assert "already holds a run" in err
    code, out, err = command("train", "run_dir=nosuch://a/b")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "nosuch" in err
    code, out, err = command("evaluate", url + "-none")
    assert (code, out, err.count("\n")) == (2, "", 1)
