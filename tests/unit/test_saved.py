"""Going on with a run in one process: the weights bit for bit what they would have been, or refused in one line."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import wholebatch as wb
from wholebatch.loop.signals import INTERRUPT, SAVE, Signals

sys.path.insert(0, str(Path(__file__).parents[1] / "distributed"))

import resuming
from resuming import STEPS, At, interrupted, plain, saved_steps, send


@pytest.fixture(scope="module")
def undisturbed():
    return resuming.train(None)


def same(result, undisturbed):
    code, weights, records = result
    assert code == 0
    assert all(torch.equal(a, b) for a, b in zip(weights, undisturbed[0], strict=True))
    assert resuming.same_records(records, undisturbed[1])


@pytest.mark.parametrize("every", ["1 steps", "5 steps", None])
@pytest.mark.parametrize("at", [1, 6, 10, STEPS])  # the first step, the end of an epoch, within one, the last step
def test_bit_for_bit(tmp_path, undisturbed, every, at):
    options = {"checkpoint_every": every}
    assert interrupted(0, 1, str(tmp_path), at, options)[0] == 143
    assert saved_steps(tmp_path)[-1] == at
    same(interrupted(0, 1, str(tmp_path), None, options), undisturbed)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert resuming.same_records(plain([json.loads(line) for line in lines]), undisturbed[1])
    assert max(saved_steps(tmp_path)) == STEPS
    assert len(saved_steps(tmp_path)) <= 4  # the last three, and the best


class Broken(Exception):
    """What goes wrong in the middle."""


def crash(folder, at, **options):
    def fail():
        raise Broken

    with pytest.raises(Broken):
        resuming.train(folder, observers=[At(0, {at: fail})], resume=True, **options)


def test_records_after_the_checkpoint_are_cut(tmp_path, undisturbed):
    for at in (3, 8, 8, 11, 17, 23):
        crash(tmp_path, at, checkpoint_every="4 steps")
    same(interrupted(0, 1, str(tmp_path), None, {}), undisturbed)
    assert resuming.same_records(plain([json.loads(line) for line in open_lines(tmp_path)]), undisturbed[1])


def open_lines(folder):
    return (folder / "history.jsonl").read_text().splitlines()


def test_a_damaged_newest_checkpoint_falls_back(tmp_path, undisturbed, capsys):
    crash(tmp_path, 11, checkpoint_every="2 steps")
    newest = tmp_path / "checkpoints" / f"step-{saved_steps(tmp_path)[-1]:08d}" / "state.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    same(interrupted(0, 1, str(tmp_path), None, {}), undisturbed)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step-00000010 (" in said
    assert "step-00000008 is used instead" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 8}, "batch_size was 7 and is now 8"),
        ({"seed": 12}, "seed was 11 and is now 12"),
        ({"clip_norm": 1.0}, "clip_norm was None and is now 1.0"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.2)}, "was 0.9 and is now 0"),
        ({"schedule": wb.CosineScheduler(30, base_lr=0.2, warmup_steps=3)}, "schedule was"),
        (
            {"schedule": wb.CosineScheduler(24, 0.2, 0.0, 3), "schedule_unit": "epoch"},
            "schedule_unit was step and is now epoch",
        ),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing.* was 0.0 and is now 0.1"),
        ({"data": (torch.zeros(38, 1, 6, 6).double(), torch.zeros(38).long()), "batch_size": 7}, "data"),
        ({"resume_allow": ("batchsize",)}, "did you mean 'batch_size'"),
    ],
)
def test_what_changes_the_result_is_refused(tmp_path, options, named):
    interrupted(0, 1, str(tmp_path), 4, {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".generation"}
    with pytest.raises(wb.InputError, match=named) as caught:
        resuming.train(tmp_path, resume=True, **options)
    assert "\n" not in str(caught.value)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_is_said_explicitly_may_change(tmp_path, capsys):
    interrupted(0, 1, str(tmp_path), 4, {})
    options = {"batch_size": 8, "seed": 1, "clip_norm": 5.0}
    _, records = resuming.train(tmp_path, resume=True, resume_allow=tuple(options), **options)
    assert records[-1]["epoch"] == resuming.EPOCHS
    assert "going on with another batch_size: batch_size was 7 and is now 8" in capsys.readouterr().err


def test_from_another_runs_folder(tmp_path, undisturbed):
    first, second = tmp_path / "first", tmp_path / "second"
    interrupted(0, 1, str(first), 9, {})
    before = (first / "history.jsonl").read_bytes()
    weights, records = resuming.train(second, resume=first)
    same((0, weights, records), undisturbed)
    assert resuming.same_records(plain([json.loads(line) for line in open_lines(second)]), undisturbed[1])
    assert ((first / "history.jsonl").read_bytes(), saved_steps(first)[-1]) == (before, 9)
    weights, records = resuming.train(None, resume=first)  # nothing is written
    same((0, weights, records), undisturbed)
    with pytest.raises(wb.RunFolderError, match="already holds a run"):
        resuming.train(second, resume=first)


def test_the_epochs_schedule_goes_on(tmp_path):
    options = {"schedule": wb.CosineScheduler(4, base_lr=0.2), "schedule_unit": "epoch"}
    whole = resuming.train(None, **options)
    interrupted(0, 1, str(tmp_path), 14, options)
    same(interrupted(0, 1, str(tmp_path), None, options), whole)


class Stream(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        return iter([(torch.rand(1, 6, 6, generator=generator).double(), k % 3) for k in range(20)])


def test_a_stream_is_read_up_to_the_place(tmp_path):
    options = {"data": Stream(), "batch_size": 6, "schedule": None}
    whole = resuming.train(None, **options)
    interrupted(0, 1, str(tmp_path), 6, options)
    same(interrupted(0, 1, str(tmp_path), None, options), whole)


def test_sigint_is_130_and_sigusr1_saves_and_goes_on(tmp_path, undisturbed):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        resuming.train(tmp_path, observers=[At(0, {5: send(signal.SIGUSR1), 9: send(signal.SIGINT)})])
    assert stop.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert saved_steps(tmp_path) == [5, 9]
    same(interrupted(0, 1, str(tmp_path), None, {}), undisturbed)


def test_a_second_signal_stops_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr("os._exit", codes.append)
    signals = Signals()
    signals.open()
    try:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        assert (signals.take(), codes) == (SAVE | INTERRUPT, [])
        signal.raise_signal(signal.SIGTERM)
        assert codes == [143]
        assert not signals.take() & SAVE  # a request to save is seen to once
    finally:
        signals.close()


def test_other_threads_have_no_signals(tmp_path, undisturbed):
    results = []
    thread = threading.Thread(target=lambda: results.append(resuming.train(tmp_path)))
    thread.start()
    thread.join()
    same((0, *results[0]), undisturbed)


def test_the_time_limit_saves_and_stops(tmp_path, undisturbed):
    rounds, records = 0, []
    while len(records) < len(undisturbed[1]):  # the limit may fall between the last step and its epoch's records
        slow = At(0, dict.fromkeys(range(STEPS + 1), lambda: time.sleep(0.02)))
        weights, records = resuming.train(tmp_path, resume=True, time_limit=0.4, observers=[slow])
        rounds += 1
    assert rounds > 1
    same((0, weights, records), undisturbed)


@pytest.mark.parametrize("options", [{"resume": True}, {"checkpoint_every": "1 steps"}, {"time_limit": "2 h"}])
def test_what_needs_a_folder(options):
    with pytest.raises(wb.ConfigError, match=f"{next(iter(options))}=.* needs a folder"):
        resuming.train(None, **options)


def test_a_state_that_cannot_be_saved_is_refused_before_the_training(tmp_path):
    made = resuming.model()
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, torch.nn.Identity())
    with pytest.raises(wb.InputTypeError, match="which a checkpoint cannot hold"):
        resuming.train(tmp_path / "run", made, optimizer=optimizer, schedule=schedule)
    assert list(tmp_path.iterdir()) == []


class Counter:
    """A metric that is not this library's."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.seen = 0

    def update(self, output, target):
        self.seen += len(target)

    def compute(self):
        return self.seen


def test_a_strangers_metric_is_left_out_of_the_epoch_that_was_interrupted(tmp_path, capsys):
    options = {"metrics": {"seen": Counter()}, "eval_data": None}
    interrupted(0, 1, str(tmp_path), 9, options)
    _, _, records = interrupted(0, 1, str(tmp_path), None, options)
    seen = [record.get("seen") for record in records if record["kind"] == "epoch"]
    assert seen == [38, None, 38, 38]
    assert "the metric seen of epoch 2 is left out" in capsys.readouterr().err
