"""Processes that are killed while they save: what is left is always good and never older than what was reported."""

import os
import random
import signal
import time

import pytest
import torch

from wholebatch.checkpoint import Store


@pytest.mark.parametrize(
    ("background", "elements", "kills"), [(False, 20_000, 20), (False, 400_000, 8), (True, 50_000, 10)]
)
def test_kills_at_random_moments(worlds, tmp_path, background, elements, kills):
    run, log = tmp_path / "run", tmp_path / "done"
    log.touch()
    draw = random.Random(elements)
    said = []
    store = Store(run, say=said.append)
    for _ in range(kills):
        before = log.stat().st_size
        pid = worlds.start("save_forever", run=str(run), log=str(log), elements=elements, background=background)
        give_up = time.monotonic() + 20
        while log.stat().st_size == before and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        assert worlds.wait(pid) == -signal.SIGKILL
        reported = int(log.read_text().split()[-1])
        newest = store.newest()
        assert newest.step >= reported
        assert newest.step <= reported + 2
        state = store.load(newest)
        assert state["step"] == newest.step
        assert all(torch.equal(w, torch.full((elements,), float(newest.step))) for w in state["weights"])
        latest = (store.folder / "latest").read_text().strip()
        assert latest in {checkpoint.path.name for checkpoint in store.list()}
        lines = (run / "history.jsonl").read_text().splitlines()
        assert len(lines) >= newest.step
    assert said == []  # none was ever half-written
    assert len(list((run / "checkpoints").glob(".*"))) == 2  # the last world's staging folder, and who it was
