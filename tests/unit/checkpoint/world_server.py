"""A process that forks worlds on command, so that torch is imported once; run by the fixture ``worlds``.

Each line of standard input is a command in JSON, each line of standard output its answer.
"""

import itertools
import json
import os
import signal
import sys
import traceback

import torch

from wholebatch.checkpoint import Background, Fence, Store
from wholebatch.core.errors import FencedError

FENCED, BROKEN = 3, 4
OPERATIONS = ("open", "write", "fsync", "rename", "mkdir", "ftruncate")


def state_of(step, elements):
    return {"step": step, "weights": [torch.full((elements,), float(step)) for _ in range(4)]}


def save_forever(run, log, elements, background=False, **_):
    """Save steps 1, 2, … or go on after the newest; note each that is reported done."""
    store = Store(run, keep_last=2, fence=Fence.take(run))
    newest = store.newest()
    done = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    saver = Background(store)
    for step in itertools.count(newest.step + 1 if newest else 1):
        store.fence.append(f"{run}/history.jsonl", json.dumps({"step": step}).encode() + b"\n")
        if background:
            saver.save(state_of(step, elements), step=step)  # has waited for the one before
            step -= 1
        else:
            store.save(state_of(step, elements), step=step)
        if step:
            os.write(done, b"%d\n" % step)


def stop_at(run, operation, **_):
    """Append and save for ever; stop oneself before operation number ``operation`` on the disk, once."""
    fence = Fence.take(run)
    store = Store(run, keep_last=1, fence=fence)
    fence.append(f"{run}/history.jsonl", b'{"old": 0}\n')
    seen = itertools.count(1)
    for name in OPERATIONS:
        setattr(os, name, stopping(getattr(os, name), seen, operation))
    for step in itertools.count(100):
        fence.append(f"{run}/history.jsonl", b'{"old": 1}\n')
        store.save(state_of(step, 8), step=step)
        fence.replace(f"{run}/note", b"old")


def take_at(run, operation, **_):
    """Take the folder; stop oneself before operation number ``operation``; write."""
    seen = itertools.count(1)
    for name in (*OPERATIONS, "listdir"):
        setattr(os, name, stopping(getattr(os, name), seen, operation))
    fence = Fence.take(run)
    for _ in range(3):
        fence.replace(f"{run}/note", b"old")
    os._exit(0)


def stopping(call, seen, operation):
    def wrapped(*arguments, **more):
        if next(seen) == operation:
            os.kill(os.getpid(), signal.SIGSTOP)
        return call(*arguments, **more)

    return wrapped


def child(command):
    try:
        globals()[command["do"]](**command)
    except FencedError:
        os._exit(FENCED)
    except BaseException:
        traceback.print_exc()
    os._exit(BROKEN)


def main():
    torch.set_num_threads(1)
    alive = set()
    print(json.dumps({"ready": True}), flush=True)
    try:
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "wait":
                pid, status = os.waitpid(command["pid"], os.WUNTRACED)
                stopped = os.WIFSTOPPED(status)
                if not stopped:
                    alive.discard(pid)
                answer = {"stopped": stopped, "exit": None if stopped else os.waitstatus_to_exitcode(status)}
            else:
                pid = os.fork()
                if pid == 0:
                    child(command)
                alive.add(pid)
                answer = {"pid": pid}
            print(json.dumps(answer), flush=True)
    finally:
        for pid in alive:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
