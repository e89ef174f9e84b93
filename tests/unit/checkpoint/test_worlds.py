"""Two worlds, one folder: the older one, stopped anywhere and woken, writes nothing and learns why."""

import os
import random
import signal
import time

import pytest

from wholebatch.checkpoint import Fence, Store

FENCED = 3


def take_over(run, state):
    """A newer world that writes all there is to write."""
    fence = Fence.take(run)
    store = Store(run, keep_last=3, fence=fence, say=lambda line: None)
    fence.append(run / "history.jsonl", b'{"new": 1}\n')
    assert store.save(state(200), step=200)
    fence.replace(run / "note", b"new")
    return fence


@pytest.mark.parametrize("part", range(3))
def test_stopped_before_every_operation(worlds, tmp_path, state, tree, part):
    stops = 0
    for operation in range(1 + part, 64, 3):
        run = tmp_path / f"run{operation}"
        pid = worlds.start("stop_at", run=str(run), operation=operation)
        assert worlds.wait(pid) == "stopped"
        fence = take_over(run, state)
        before = tree(run)
        os.kill(pid, signal.SIGCONT)
        assert worlds.wait(pid) == FENCED, operation
        assert tree(run) == before, operation
        assert (run / "history.jsonl").read_bytes().endswith(b'{"new": 1}\n')
        assert Store(run).newest().step == 200
        fence.close()
        stops += 1
    assert stops == 21


@pytest.mark.parametrize("background", [False, True])
def test_stopped_at_random_moments(worlds, tmp_path, state, tree, background):
    draw = random.Random(5)
    for number in range(6):
        run = tmp_path / f"run{number}"
        log = tmp_path / f"done{number}"
        log.touch()
        pid = worlds.start("save_forever", run=str(run), log=str(log), elements=300_000, background=background)
        give_up = time.monotonic() + 20
        while not log.stat().st_size and time.monotonic() < give_up:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        os.kill(pid, signal.SIGSTOP)
        assert worlds.wait(pid) == "stopped"
        fence = take_over(run, state)
        before = tree(run)
        os.kill(pid, signal.SIGCONT)
        assert worlds.wait(pid) == FENCED
        assert tree(run) == before
        fence.close()


@pytest.mark.parametrize("history", [False, True])
def test_stopped_while_it_takes_the_folder(worlds, tmp_path, state, tree, history):
    """A world that slept in the middle of taking is an older one; one that slept before it looked is a newer one."""
    exits = []
    for operation in range(1, 26 if history else 21):
        run = tmp_path / f"run{operation}"
        if history:
            run.mkdir()
            (run / "history.jsonl").write_bytes(b'{"older": 1}\n')
        pid = worlds.start("take_at", run=str(run), operation=operation)
        assert worlds.wait(pid) == "stopped"
        fence = take_over(run, state)
        before = tree(run)
        os.kill(pid, signal.SIGCONT)
        exits.append(worlds.wait(pid))
        assert fence.holds() is (exits[-1] == FENCED), operation
        if exits[-1] == FENCED:
            assert tree(run) == before, operation
        fence.close()
    late = exits.index(FENCED)
    assert 1 <= late <= 4  # making the folders, and the first look
    assert exits == [0] * late + [FENCED] * (len(exits) - late)


def test_worlds_that_take_over_one_another_while_running(worlds, tmp_path):
    """Without being stopped: each newcomer ends the one before; what is left is good."""
    run, log = tmp_path / "run", tmp_path / "done"
    log.touch()
    pids = []
    for _ in range(6):
        pids.append(worlds.start("save_forever", run=str(run), log=str(log), elements=30_000))
        enough, give_up = log.stat().st_size + 12, time.monotonic() + 20
        while log.stat().st_size <= enough and time.monotonic() < give_up:
            time.sleep(0.001)
    assert [worlds.wait(pid) for pid in pids[:-1]] == [FENCED] * 5
    os.kill(pids[-1], signal.SIGKILL)
    worlds.wait(pids[-1])
    said = []
    store = Store(run, say=said.append)
    assert store.newest().generation == 6
    assert said == []
    steps = [int(step) for step in log.read_text().split()]
    assert store.newest().step >= max(steps)
